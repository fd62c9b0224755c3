"""Who may import whom: imports only go down."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from mobilenext.start import job_names

PACKAGE = Path(__file__).resolve().parents[1] / "mobilenext"
LEAVES = {"errors", "files", "genotype", "plain", "program", "seeding", "timm_names"}
GROUND = {"config", "data", "models", "optim", "runtime", "tables"}
"""Rooms that import none of each other."""
MIDDLE = {"training": {"data", "models", "optim", "runtime"},
          "metrics": {"data", "models", "runtime"},
          "deploy": {"data", "metrics", "models", "runtime", "training"},
          "sweeps": {"training", "runtime"},
          "assembly": {"config", "data", "metrics", "models", "optim", "runtime",
                       "training"}}  # fmt: skip
"""What other rooms import, beside themselves and leaves."""
TOP = {"main": LEAVES | GROUND | {"training", "sweeps", "execution"},
       "execution": LEAVES | {"config", "runtime", "sweeps", "training"},
       "start": {"main", "jobs", "config", "errors", "program"},
       "__main__": {"start", "jobs", "program"}}  # fmt: skip
"""The ways in, above all rooms, and what they import."""
KNOW_NO_NETWORK = ("models.complexity", "models.fused", "models.registry", "models.weights")
"""What jobs and `assembly` may take of `models`."""
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST_RUN, LONGEST_TRAIN = 250, 70


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def parts(path: Path) -> tuple[str, set[str], set[str]]:
    """A file's place in the package, what it imports of the package, and of the rest."""
    place = path.relative_to(PACKAGE).with_suffix("").parts[0]
    all_names = imports(path)
    inside = {n.removeprefix("mobilenext.") for n in all_names if n.startswith("mobilenext.")}
    return place, inside, {n.split(".")[0] for n in all_names if not n.startswith("mobilenext")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    place, inside, outside = parts(path)
    tops = {name.split(".")[0] for name in inside}
    if place in LEAVES:
        assert tops <= ({"errors", "files"} if place == "genotype" else {"errors"} - {place})
    elif place == "__init__":
        assert tops <= {"timm_names"}, "it registers the networks with timm, nothing more"
    elif place in GROUND:
        assert tops <= LEAVES | {place}
    elif place in MIDDLE:
        assert tops <= LEAVES | {place} | MIDDLE[place]
    elif place in TOP:
        assert tops <= TOP[place], "the ways in name no job"
    else:
        assert place == "jobs", f"{path} is in no room: say in this test and ARCHITECTURE.md what"
        assert not tops & {"main", "__main__", "jobs"}, "no job imports a job"
    if place in ("jobs", "assembly"):
        networks = {n for n in inside if n.startswith("models")}
        assert all(n.startswith(KNOW_NO_NETWORK) for n in networks), (
            "a network arrives by its _target_"
        )
    if place not in {"config", "main"}:
        assert not outside & {"hydra", "omegaconf"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_private_name_crosses_a_module(path: Path) -> None:
    names = {n for n in imports(path) if n.startswith("mobilenext")}
    private = {n for n in names if n.rpartition(".")[2].startswith("_")}
    assert private <= {"mobilenext.data._native"}


def test_every_place_is_known() -> None:
    places = {parts(path)[0] for path in FILES}
    known = GROUND | LEAVES | MIDDLE.keys()
    assert places == known | TOP.keys() | {"jobs", "__init__"}


def definition(path: str, name: str) -> ast.FunctionDef | ast.ClassDef:
    for node in ast.parse((PACKAGE / path).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node
    raise AssertionError(f"{path} has no {name}")


def code_lines(path: str, name: str) -> int:
    """Lines of a function without its docstring, comments and blank lines."""
    node = definition(path, name)
    assert isinstance(node, ast.FunctionDef)
    lines = (PACKAGE / path).read_text().splitlines()[node.body[1].lineno - 1 : node.end_lineno]
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in lines)


def test_the_loop_stays_one_story() -> None:
    for job in ("train", "detect", "search"):
        assert code_lines(f"jobs/{job}.py", job) <= LONGEST_TRAIN
    run = definition("training/run.py", "Run")
    assert (run.end_lineno or 0) - run.lineno + 1 <= LONGEST_RUN


def test_a_loop_leaves_to_the_run_what_is_the_runs() -> None:
    for job in ("train", "detect", "search"):
        text = (PACKAGE / "jobs" / f"{job}.py").read_text()
        for name in ("Session", "Checkpoints", "Monitor", "meter.add", "all_reduce", ".item()"):
            assert name not in text, f"jobs/{job}.py: {name} belongs to training.run"


def test_the_run_has_no_hooks() -> None:
    """It never calls the network, and the only callback is `score`, with batches `ahead`."""
    run = definition("training/run.py", "Run")
    assert isinstance(run, ast.ClassDef)
    assert not run.bases
    callbacks = {
        argument.arg
        for function in run.body
        if isinstance(function, ast.FunctionDef)
        for argument in function.args.args
        if argument.annotation is not None and "Callable" in ast.unparse(argument.annotation)
    }
    assert callbacks == {"rate", "ahead", "score"}


@pytest.mark.parametrize("job", job_names())
def test_entries_are_thin(job: str) -> None:
    path = PACKAGE.parent / ("train.py" if job == "train" else f"scripts/{job}.py")
    place = "mobilenext.start.start" if job == "train" else "checkout.start"
    assert imports(path) == {place}
    assert f'start("{job}")' in path.read_text()
    assert len(path.read_text().splitlines()) <= 12


@pytest.mark.parametrize(
    ("statement", "slow"),
    [
        ("mobilenext", "torch timm torchvision hydra numpy"),
        ("mobilenext.start", "torch timm torchvision hydra numpy"),
        ("mobilenext.main", "torch timm torchvision numpy"),
    ],
)
def test_the_way_in_loads_no_library(statement: str, slow: str) -> None:
    """A missing package is said in a line, a typo at once, and others pay nothing for our names."""
    program = f"import {statement}, sys; print([n for n in {slow.split()} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
