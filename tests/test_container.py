"""The Dockerfile names what is there; no image is built."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.commands import REPO

PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]


def instructions() -> list[tuple[str, str]]:
    text = (REPO / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    return [
        (first, rest.strip()) for first, _, rest in (x.partition(" ") for x in whole.split("\n"))
    ]


def of(kind: str) -> list[str]:
    return [rest for first, rest in instructions() if first == kind]


def test_all_that_is_copied_is_there_and_let_in() -> None:
    let_in = (REPO / ".dockerignore").read_text().splitlines()
    assert "*" in let_in
    sources = [path for line in of("COPY") if not line.startswith("--from")
               for path in shlex.split(line)[:-1]]  # fmt: skip
    assert {"pyproject.toml", "setup.py", "native", "configs", "mobilenext"} <= set(sources)
    for path in sources:
        assert (REPO / path).exists(), path
        assert f"!{path}" in let_in, path
    assert {line[1:] for line in let_in if line.startswith("!")} == set(sources)


def test_the_command_is_ours() -> None:
    (command,) = of("CMD")
    assert json.loads(command)[0] in PROJECT["scripts"]


@pytest.mark.skipif(sys.platform == "win32", reason="a shell command")
def test_requirements_are_those_of_the_package(tmp_path: Path) -> None:
    """The line of the image, run."""
    (extras,) = (line.partition("=")[2] for line in of("ARG") if line.startswith("EXTRAS"))
    (line,) = (line for line in of("RUN") if "tomllib" in line)
    command = line.partition("&&")[0].replace("python ", f"{shlex.quote(sys.executable)} ", 1)
    command = command.replace("/tmp/pyproject.toml", str(REPO / "pyproject.toml"))
    command = command.replace("/tmp/requirements.txt", shlex.quote(str(tmp_path / "found")))
    subprocess.run(["sh", "-c", f"EXTRAS={extras}; {command}"], check=True)
    wanted = list(PROJECT["dependencies"])
    for extra in shlex.split(extras)[0].split():
        wanted += PROJECT["optional-dependencies"][extra]
    assert (tmp_path / "found").read_text().splitlines() == wanted
    assert not any(requirement.startswith("mobilenext") for requirement in wanted)


def test_the_decoder_is_built_with_libjpeg_and_finds_it() -> None:
    build, run = (REPO / "Dockerfile").read_text().split("\nFROM ")[1:]
    assert re.search(r"\bgcc libc6-dev libjpeg62-turbo-dev\b", build)
    assert "libjpeg62-turbo " in run
    checks = [shlex.split(line) for line in of("RUN") if "mn_libjpeg" in line]
    ((*_, program),) = checks
    compile(program, "Dockerfile", "exec")
