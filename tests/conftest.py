import gc
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from filelock import FileLock

from mobilenext.runtime.distributed import Process
from tests.commands import REPO, run_command, start_fork
from tests.composed import LEARNS, composed, placed

DEVELOPMENT_DATA = Path(os.environ.get("MOBILENEXT_DATA", REPO.parent / "shared" / "data"))

torch.set_num_threads(1)  # the suite has a process for each core
pytest.register_assert_rewrite("tests.compare")


@pytest.fixture
def development_data() -> Path:
    """Real images for development; most machines don't have them."""
    if not DEVELOPMENT_DATA.is_dir():
        pytest.skip(f"no development data at {DEVELOPMENT_DATA}; set MOBILENEXT_DATA")
    return DEVELOPMENT_DATA


@pytest.fixture
def photo_folder(tmp_path: Path) -> Path:
    """Two classes of real photographs (scikit-learn's), as train/val class folders."""
    from sklearn.datasets import load_sample_image

    photos = {"flower": load_sample_image("flower.jpg"), "temple": load_sample_image("china.jpg")}
    random = np.random.default_rng(0)
    root = tmp_path / "photos"
    for split, count in (("train", 12), ("val", 5)):
        for name, photo in photos.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                top, left = random.integers(0, 200), random.integers(0, 400)
                crop = photo[top : top + 160, left : left + 200]
                PIL.Image.fromarray(crop).save(folder / f"{number}.jpg", quality=90)
    return root


def in_terminal(arguments: list[str], cwd: Path, env: dict[str, str]) -> tuple[str, str]:
    """Run a `command` whose standard error is a terminal; what came there, and on stdout."""
    pty = pytest.importorskip("pty")
    termios = pytest.importorskip("termios")
    mine, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (40, 170))
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "stdout"
        process = start_fork(arguments, cwd, env, (said, Path(os.ttyname(terminal))))
        shown = b""
        while mine in wait([mine, process.sentinel]):
            shown += os.read(mine, 65536)
        os.close(terminal)
        while piece := _read(mine):
            shown += piece
        os.close(mine)
        process.join()
        assert process.exitcode == 0, shown.decode()
        return shown.decode(), said.read_text()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux says so when the other end has closed
        return b""


Make = Callable[[Path], object]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Make], Path]:
    """Folder of a name, filled by a function once in a suite, whichever worker comes first."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def once(name: str, make: Make) -> Path:
        folder, ready = base / name, base / f"{name}.ready"
        with FileLock(base / f"{name}.lock"):
            if not ready.exists():
                shutil.rmtree(folder, ignore_errors=True)
                make(folder)
                ready.touch()
        return folder

    return once


@pytest.fixture(scope="session")
def learned(once: Callable[[str, Make], Path]) -> Path:
    """Folder of a whole run (`LEARNS`) that has learned digits; it is everyone's: read only."""
    from mobilenext.jobs.train import train

    cpu = Process(torch.device("cpu"))
    return once("learned", lambda path: train(placed(composed(*LEARNS), path), cpu))


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a command of the project in a fresh folder, as a user does."""

    def run(
        *arguments: object,
        processes: int = 1,
        cwd: Path = tmp_path,
        ok: bool = True,
        torchrun: tuple[str, ...] | None = None,
        env: dict[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        done = run_command(
            *arguments, cwd=cwd, processes=processes, torchrun=torchrun, env=env, before=before
        )
        if ok:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run


LONGEST = ("jobs/test_search.py", "jobs/test_train.py", "test_main.py", "test_configs.py",
           "jobs/test_export.py", "training/test_resume.py", "sweeps/test_sweeps.py",
           "test_benchmarks.py", "jobs/test_detect.py", "test_install.py", "models/test_timm.py",
           "models/test_ssdlite.py", "deploy/test_detectors.py", "deploy/test_formats.py",
           "tables/test_page.py", "test_targets.py", "jobs/test_prepare_imagenet.py",
           "jobs/test_evaluate.py", "jobs/test_gradients.py", "training/test_run.py",
           "jobs/test_finetune.py", "deploy/test_int8.py")  # fmt: skip
"""Files that take longest, to be begun first: each of them is one worker's."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, all others in their order."""
    places = {str(REPO / "tests" / name): place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(str(item.path), len(places)))


def pytest_collection_finish() -> None:
    """Modules and tests stay: searching them for garbage takes a fifth of the time of configs."""
    gc.collect()
    gc.freeze()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One worker more than cores: some tests wait for processes, signals or the disk."""
    del config
    return (os.cpu_count() or 1) + 1
