"""The package as a user installs it: a wheel, an environment without the checkout, any folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from mobilenext import program
from mobilenext.__main__ import main
from mobilenext.start import job_names
from tests.commands import REPO
from tests.composed import TINY

SMALL = ("epochs=1", *TINY)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without the native decoder, which would take longest."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("configs", "hydra_plugins", "mobilenext"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(REPO / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(REPO / name, source / name)
    shutil.copytree(REPO / "native", source / "native")
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "-q", "-w", str(built)]
    done = subprocess.run(
        command, cwd=source, capture_output=True, text=True, check=False,
        env={**os.environ, "CC": "/bin/false"},
    )  # fmt: skip
    if done.returncode and (
        "No matching distribution" in done.stderr or "No module" in done.stderr
    ):
        pytest.skip(f"no wheel can be built here: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of programs of an environment that has the wheel, and what it needs from here."""
    root = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root)], check=True)
    paths = sysconfig.get_paths(vars={"base": str(root), "platbase": str(root)})
    install = [sys.executable, "-m", "pip", "--python", str(root / "bin" / "python"), "install",
               "-q", "--no-deps", str(wheel)]  # fmt: skip
    subprocess.run(install, check=True, capture_output=True)
    # Its .pth files are not read, so the checkout does not come with it.
    borrowed = Path(paths["purelib"]) / "borrowed.pth"
    borrowed.write_text(f"{sysconfig.get_paths()['purelib']}\n")
    return root / "bin"


def run(
    environment: Path, cwd: Path, *arguments: str, ok: bool = True
) -> "subprocess.CompletedProcess[str]":
    program, *rest = arguments
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [environment / program, *rest], cwd=cwd, capture_output=True, text=True, check=False,
        env={**variables, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    if ok:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


pytestmark = pytest.mark.skipif(os.name != "posix", reason="programs lie elsewhere on Windows")


def test_every_config_is_in_the_wheel(wheel: Path) -> None:
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if "/configs/" in name}
    here = {
        f"mobilenext/configs/{path.relative_to(REPO / 'configs')}"
        for path in (REPO / "configs").rglob("*.yaml")
    }
    assert inside == here
    assert len(here) > 80


def test_the_demo_in_an_empty_folder(environment: Path, tmp_path: Path) -> None:
    done = run(environment, tmp_path, "mobilenext", "train", *SMALL)
    assert "finished: top-1" in done.stdout
    (folder,) = (tmp_path / "runs").glob("*/*")
    assert (folder / "result.json").exists()
    assert '"command": "mobilenext train epochs=1' in (folder / "result.json").read_text()
    again = run(environment, tmp_path, "python", "-m", "mobilenext", "train", *SMALL)
    assert "already finished" in again.stdout
    where = (
        "import os, sys, mobilenext, timm;"
        "print(mobilenext.__file__, timm.create_model('mnext_s'));"
        "from mobilenext.jobs.summary import SummaryConfig, summary;"
        "from mobilenext.main import launch; sys.argv = ['x', 'width=0.35'];"
        "launch(lambda: summary, SummaryConfig, 'summary'); print(os.environ.get('PYTHONPATH'))"
    )
    said = run(environment, tmp_path, "python", "-c", where).stdout
    assert str(environment.parent) in said, "the checkout was imported, not the wheel"
    assert "1,913,976" in said
    assert said.endswith("None\n"), "installed packages would come before the standard library"


def test_what_the_command_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mobilenext"])
    main()
    said = capsys.readouterr().out
    for job in job_names():
        assert f"\n  {job} " in said
    monkeypatch.setattr(sys, "argv", ["mobilenext", "trian", "width=0.5"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert "error: unknown job 'trian'" in capsys.readouterr().err


def test_commands_are_named_as_they_are_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/env/bin/python")
    found = {"python": "/env/bin/python", "mobilenext": "/env/bin/mobilenext"}
    monkeypatch.setattr(program.shutil, "which", found.get)
    monkeypatch.setattr(program, "_job", None)
    monkeypatch.setattr(sys, "argv", ["/checkout/scripts/evaluate.py", "checkpoint=x"])
    assert program.command() == "python /checkout/scripts/evaluate.py"
    assert program.command("prepare_imagenet") == "python scripts/prepare_imagenet.py"
    assert program.start_again() == ["/checkout/scripts/evaluate.py"]
    program.start_as("evaluate")
    monkeypatch.setattr(sys, "argv", ["/env/bin/mobilenext", "checkpoint=a b"])
    assert program.command() == "mobilenext evaluate"
    assert program.command("train") == "mobilenext train"
    assert program.command_line() == "mobilenext evaluate 'checkpoint=a b'"
    assert program.start_again() == ["-m", "mobilenext", "evaluate"]
    monkeypatch.setattr(sys, "argv", ["/env/lib/mobilenext/__main__.py", "checkpoint=x"])
    assert program.command_line() == "python -m mobilenext evaluate checkpoint=x"


def test_commands_name_a_python_that_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody activated the environment: `python` is another one."""
    monkeypatch.setattr(program, "_job", None)
    monkeypatch.setattr(program.shutil, "which", {"python": "/usr/bin/python"}.get)
    monkeypatch.setattr(sys, "argv", ["/nowhere/train.py"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    assert program.command("report") == ".venv/bin/python scripts/report.py"
    assert program.beside_python("tensorboard") == ".venv/bin/tensorboard"
    monkeypatch.setattr(sys, "argv", [str(REPO / "scripts" / "evaluate.py")])
    assert program.command("report") == f".venv/bin/python {REPO}/scripts/report.py"
    monkeypatch.chdir(REPO)
    assert program.command("report").endswith("python scripts/report.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", "/other place/bin/python")
    assert program.python() == "'/other place/bin/python'"


def test_a_missing_package_is_one_line(tmp_path: Path) -> None:
    """Where nobody installed or activated anything."""
    program = (
        f"import runpy, sys; sys.path.insert(0, {str(REPO)!r}); sys.argv = ['train.py'];"
        f"runpy.run_path({str(REPO / 'train.py')!r}, run_name='__main__')"
    )
    command = [sys.executable, "-I", "-S", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "is not installed for" in done.stderr
    assert sys.executable in done.stderr


@pytest.mark.slow
def test_torchrun_and_sweeps_of_the_module(environment: Path, tmp_path: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    module = ("-m", "mobilenext", "train", *SMALL)
    done = run(environment, tmp_path, "python", *torchrun, *module)
    assert "on 2 x cpu" in done.stdout
    sweep = ("train", "-m", *SMALL, "seed=1,2", "hydra.launcher.processes=2")
    done = run(environment, tmp_path, "mobilenext", *sweep)
    assert "sweep of 2 jobs: 2 finished" in done.stdout
    refused = run(environment, tmp_path, "python", *torchrun, *module, "-m", "seed=3,4", ok=False)
    assert "mobilenext train -m hydra/launcher=torchrun" in refused.stderr
