"""What the documents say of the code is there."""

import fnmatch
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from mobilenext.main import EXIT_PREEMPTED
from tests.composed import composed

REPO = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md",
             "docs/cluster.md")  # fmt: skip


def promises() -> list[tuple[str, list[str]]]:
    """Each test file that the promises name, with the tests that are named after it."""
    found: list[tuple[str, list[str]]] = []
    for line in (REPO / "README.md").read_text().splitlines():
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
        text = (REPO / "tests" / file).read_text()
        names = re.findall(r"^def (test_\w+)", text, re.MULTILINE)
        assert names, file
        for pattern in patterns:
            assert fnmatch.filter(names, pattern), f"{file} has no {pattern}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_documents_name_exist(document: str) -> None:
    named = re.findall(r"`((?:mobilenext|configs|scripts|tests|docs|benchmarks|native)/[\w./]*\w)`",
                       (REPO / document).read_text())  # fmt: skip
    missing = {path for path in named if not (REPO / path).exists()}
    assert not missing


def composes(words: list[str]) -> bool:
    """Whether a command is a training whose config is whole, torchrun's options apart."""
    place = max((n for n, word in enumerate(words) if word in ("train", "train.py")), default=-1)
    overrides = words[place + 1 :]
    return place >= 0 and bool(overrides) and composed(*overrides).epochs > 0


def test_commands_for_clusters_compose() -> None:
    text = (REPO / "docs" / "cluster.md").read_text()
    blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert text.startswith("# Clusters\n\n```\ntorchrun ")
    whole = [line for block in blocks for line in block.splitlines()
             if "train" in line and "..." not in line]  # fmt: skip
    assert len(whole) == 2
    assert all(composes(shlex.split(line)) for line in whole)


def kubernetes() -> tuple[dict[str, Any], dict[str, Any]]:
    text = (REPO / "docs" / "cluster.md").read_text()
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
    assert composes(words)
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
