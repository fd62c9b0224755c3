"""What the documents say of the code is there."""

import fnmatch
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from mobilenext.genotype import named_genotypes
from mobilenext.main import EXIT_PREEMPTED
from tests.composed import composed_command

REPO = Path(__file__).resolve().parents[1]
PAGES = sorted(f"docs/{path.name}" for path in (REPO / "docs").glob("*.md"))
DOCUMENTS = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", *PAGES]
RENDERED = re.compile(r"<!-- table: (\S+) -->.*?<!-- /table -->", re.DOTALL)
"""`scripts/tables.py` made it."""


def text_of(document: str) -> str:
    return (REPO / document).read_text()


# ---- promises ----


def promises() -> list[tuple[str, list[str]]]:
    """Each test file that the promises name, with the tests that are named after it."""
    found: list[tuple[str, list[str]]] = []
    for line in text_of("docs/promises.md").splitlines():
        cells = line.split("|")
        if not line.startswith("| **") or len(cells) < 4 or "test_" not in cells[-2]:
            continue
        for part in re.findall(r"`([^`]+)`", cells[-2]):
            if part.endswith(".py"):
                found.append((part, []))
            else:
                found[-1][1].append(part)
    return found


def test_the_tests_of_all_promises_exist() -> None:
    assert len(promises()) > 25
    for file, patterns in promises():
        text = text_of(f"tests/{file}")
        names = re.findall(r"^def (test_\w+)", text, re.MULTILINE)
        assert names, file
        for pattern in patterns:
            assert fnmatch.filter(names, pattern), f"{file} has no {pattern}"


# ---- files, links, sizes ----


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_documents_name_exist(document: str) -> None:
    named = re.findall(
        r"`((?:mobilenext|configs|scripts|tests|docs|benchmarks|native)/[\w./]*\w)`",
        text_of(document),
    )
    missing = {path for path in named if not (REPO / path).exists()}
    assert not missing


def anchors(document: str) -> set[str]:
    """What GitHub calls the headings of a document."""
    text = re.sub(r"^```.*?^```", "", text_of(document), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)|[`*]", r"\1", title) for title in titles]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in plain}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_resolve(document: str) -> None:
    text = re.sub(r"^```.*?^```", "", text_of(document), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    links += re.findall(r"(?:src|srcset|href)=\"([^\"]+)\"", text)
    for link in links:
        if re.match(r"https?://|mailto:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (REPO / document).parent / file if file else REPO / document
        assert target.exists(), f"{document}: {link}"
        if anchor:
            name = str(target.resolve().relative_to(REPO))
            assert anchor in anchors(name), f"{document}: {link}: has {sorted(anchors(name))}"


def test_the_readme_is_a_front_page() -> None:
    text = text_of("README.md")
    assert len(text.encode()) <= 12_000
    assert [line for line in text.splitlines() if len(line) > 700] == []
    linked = set(re.findall(r"\]\((docs/\w+\.md)\)", text))
    assert linked == set(PAGES), "each page of docs/ is linked from the front page"


# ---- commands ----

OTHER_PROGRAMS = {"make", "source", "pip", "docker", "mkdir", "kubectl", "tensorboard", "cd", "cp",
                  "mv", "ls", "head", "grep", "hf", "ruff", "pyright", "pre-commit", "find",
                  "sbatch", "pytest"}  # fmt: skip


def commands(document: str) -> list[str]:
    """Command lines of a document: those in fenced blocks without a language."""
    blocks = re.findall(r"^ *```\n(.*?)^ *```$", fences(document), re.MULTILINE | re.DOTALL)
    joined = [re.sub(r"\\\n\s*", "", block) for block in blocks]
    lines = [line.strip() for block in joined for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def fences(document: str) -> str:
    """A document without its blocks of a language, so that an end is not taken for a start."""
    return re.sub(r"^( *)```\w+\n.*?^\1```$", "", text_of(document), flags=re.MULTILINE | re.DOTALL)


def is_of_another_program(line: str) -> bool:
    words = shlex.split(line, comments=True)
    first = words[0].rpartition("/")[2]
    if first in OTHER_PROGRAMS:
        return "mobilenext train" not in line
    if first not in ("python", "python3"):
        return False
    if words[1] == "-m":
        return words[2] != "mobilenext"
    if words[1].startswith("benchmarks/"):
        return (REPO / words[1]).is_file()
    return Path(words[1]).name in ("classify.py", "find_objects.py")  # what an export has


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in which somebody has trained and searched already."""
    run = tmp_path / "runs" / "NAME" / "HASH"
    run.mkdir(parents=True)
    for name in ("sessions.jsonl", "result.json", "best.pt", "model.safetensors"):
        (run / name).touch()
    cells = yaml.safe_dump(named_genotypes()["darts_v2"].to_plain())
    (run / "genotype.yaml").write_text(cells)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("document", ["README.md", *PAGES])
def test_every_command_composes(document: str) -> None:
    assert commands(document)
    for line in commands(document):
        assert "..." not in line, f"{document}: {line}"
        for part in re.split(r" && ", line):
            needs_optuna = "experiment=tune_recipe" in part
            if needs_optuna and find_spec("hydra_plugins.hydra_optuna_sweeper") is None:
                continue  # the extra `optuna`, which tests do not need
            if not is_of_another_program(part):
                _, config = composed_command(part)
                assert config is not None


@pytest.mark.parametrize("page", PAGES)
def test_a_page_begins_with_the_command_that_its_reader_wants(page: str) -> None:
    assert re.match(r"# [^\n]+\n\n```\n\w", text_of(page)), text_of(page)[:80]
    assert commands(page)


# ---- clusters ----


def kubernetes() -> tuple[dict[str, Any], dict[str, Any]]:
    text = text_of("docs/cluster.md")
    (block,) = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    service, job = yaml.safe_load_all(block)
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    return service, job


def test_the_job_for_kubernetes_agrees_with_itself() -> None:
    service, job = kubernetes()
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    shell, script = container["command"], container["args"][0]
    assert shell == ["sh", "-c"]
    words = shlex.split(script)
    assert words[:2] == ["exec", "torchrun"]
    assert composed_command(script)[0] == "train"
    options = dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
    name = job["metadata"]["name"]
    assert int(options["nnodes"]) == spec["completions"] == spec["parallelism"]
    assert int(options["nproc-per-node"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert options["node-rank"] == "$JOB_COMPLETION_INDEX"
    assert options["master-addr"] == f"{name}-0.{service['metadata']['name']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert pod["terminationGracePeriodSeconds"] > int(options["shutdown-timeout"])
    assert pod["restartPolicy"] == "Never"  # else podFailurePolicy is refused
    codes = [rule["onExitCodes"]["values"] for rule in spec["podFailurePolicy"]["rules"]
             if "onExitCodes" in rule]  # fmt: skip
    assert codes == [[EXIT_PREEMPTED]]
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted.keys() == {volume["name"] for volume in pod["volumes"]}
    assert mounted["data"] in script
