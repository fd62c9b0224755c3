"""Who may import whom: imports only go down."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "mobilenext"
ROOMS = {"models", "data", "optim", "runtime", "tables"}
LEAVES = {"errors", "files", "plain", "seeding"}
JOBS = {"train", "evaluate", "summary", "prepare_imagenet", "loader_report", "render_tables",
        "compare_curve", "report", "gradients", "export"}  # fmt: skip
KNOW_NO_NETWORK = ("models.complexity", "models.weights")
"""What jobs may take of `models`."""
SCRIPTS = {"render_tables": "tables"}
"""Jobs whose script has another name: `tables` is a room."""
FILES = sorted(PACKAGE.rglob("*.py"))


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
        assert tops <= {"errors"} - {place}
    elif place == "__init__":
        assert tops <= {"models"}, "it registers the networks with timm, nothing more"
    elif place in ROOMS:
        assert tops <= LEAVES | {place}
    elif place in {"config", "targets"}:
        assert tops <= LEAVES
    elif place == "main":
        assert not tops & JOBS
    else:
        assert place in JOBS, (
            f"{path} is in no room: say in this test and ARCHITECTURE.md what it is"
        )
        assert "main" not in tops
        networks = {n for n in inside if n.startswith("models")}
        assert all(n.startswith(KNOW_NO_NETWORK) for n in networks), (
            "a job gets its network by _target_"
        )
    if place not in {"config", "main"}:
        assert not outside & {"hydra", "omegaconf"}


def test_every_place_is_known() -> None:
    places = {parts(path)[0] for path in FILES}
    assert places == ROOMS | LEAVES | JOBS | {"config", "main", "targets", "__init__"}


def test_the_loop_stays_readable() -> None:
    for node in ast.parse((PACKAGE / "train.py").read_text()).body:
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno + 1 <= 150, node.name


@pytest.mark.parametrize(
    "script",
    ["train.py", *(f"scripts/{SCRIPTS.get(job, job)}.py" for job in sorted(JOBS - {"train"}))],
)
def test_entries_are_thin(script: str) -> None:
    path = PACKAGE.parent / script
    inside = {n for n in imports(path) if n.startswith("mobilenext")}
    assert len(inside) == 2
    assert "mobilenext.main.launch" in inside
    assert len(path.read_text().splitlines()) <= 12
