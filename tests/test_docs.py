"""What the documents say of the code is there."""

import fnmatch
import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md")


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
