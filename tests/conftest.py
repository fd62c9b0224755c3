import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from tests.commands import REPO, run_command

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
    """Run a command whose standard error is a terminal; returns what came there and on stdout."""
    pty = pytest.importorskip("pty")
    termios = pytest.importorskip("termios")
    mine, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (40, 170))
    with subprocess.Popen(
        arguments, cwd=cwd, stdout=subprocess.PIPE, stderr=terminal, env=env
    ) as process:
        os.close(terminal)
        shown = b""
        while True:
            try:
                piece = os.read(mine, 65536)
            except OSError:  # Linux says so when the other end has closed
                break
            if not piece:
                break
            shown += piece
        assert process.stdout is not None
        said = process.stdout.read().decode()
    os.close(mine)
    assert process.returncode == 0
    return shown.decode(), said


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a command of the project in a fresh folder, as a user does."""

    def run(
        *arguments: object,
        processes: int = 1,
        cwd: Path = tmp_path,
        ok: bool = True,
        torchrun: tuple[str, ...] = (),
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
