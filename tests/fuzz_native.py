"""Damaged JPEGs for the native decoder, under the compiler's sanitizers.

`python -m tests.fuzz_native --seconds 600 --seed 7` from the repository's root; the slow tests of
tests/data/test_native.py run the same for MOBILENEXT_FUZZ_SECONDS. The driver is fuzz_driver.c.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from mobilenext.data import native
from tests.commands import REPO
from tests.conftest import DEVELOPMENT_DATA
from tests.jpegs import small_files

SECONDS = float(os.environ.get("MOBILENEXT_FUZZ_SECONDS", "120"))

SANITIZERS = {
    "address": [
        "-fsanitize=address,undefined,float-cast-overflow",
        "-fno-sanitize-recover=undefined,float-cast-overflow",
    ],
    "thread": ["-fsanitize=thread"],
    "none": [],
}


def compiler() -> str | None:
    """The C compiler, if there is one."""
    return shutil.which(os.environ.get("CC", "cc"))


def build(folder: Path, sanitizer: str) -> Path:
    """Compile the driver with the decoder's sources.

    Args:
        folder: Where to put it.
        sanitizer: One of `SANITIZERS`.

    Raises:
        RuntimeError: It does not compile, for instance for want of the sanitizer's library.
    """
    found, program = compiler(), folder / f"fuzz_{sanitizer}"
    assert found is not None
    sources = [REPO / "tests" / "fuzz_driver.c", *sorted((REPO / "native").glob("*.c"))]
    loaded = native.library()
    with_libjpeg = loaded is not None and loaded.mn_libjpeg() > 0
    done = subprocess.run(
        [
            found, "-std=gnu11", "-g", "-O1", "-pthread", *SANITIZERS[sanitizer],
            *(["-DHAVE_LIBJPEG=1"] if with_libjpeg else []), *map(str, sources),
            *(["-ljpeg"] if with_libjpeg else []), "-lm", "-o", str(program),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return program


def seeds(folder: Path, most_bytes: int = 60_000) -> list[Path]:
    """Files to begin with: made ones, and some of the development data where there is any."""
    paths = []
    for number, data in enumerate(small_files()):
        paths.append(folder / f"seed_{number:03}.jpg")
        paths[-1].write_bytes(data)
    real = [
        *sorted((DEVELOPMENT_DATA / "odd").glob("*.[jJ]*")),
        *sorted((DEVELOPMENT_DATA / "imagenet_samples").rglob("*.JPEG"))[::40],
    ]
    return paths + [path for path in real if 0 < path.stat().st_size < most_bytes]


def drive(
    program: Path, mode: str, files: list[Path], seconds: float, seed: int = 0, first: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run the driver; its exit status is 0 if nothing was found.

    Args:
        program: What `build` made.
        mode: fuzz, threads or sums.
        files: To begin with.
        seconds: How long.
        seed: Another one gives other damage.
        first: Begin with this iteration, to see again what a report shows.
    """
    environment = {
        **os.environ,
        "ASAN_OPTIONS": "allocator_may_return_null=1:detect_leaks=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1",
    }
    return subprocess.run(
        [str(program), mode, str(seed), str(seconds), str(first), *map(str, files)],
        cwd=program.parent, env=environment, capture_output=True, text=True, check=False,
        timeout=seconds + 120,
    )  # fmt: skip


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Feed damaged JPEGs to the native decoder.")
    parser.add_argument("--sanitizer", choices=SANITIZERS, default="address")
    parser.add_argument("--mode", choices=("fuzz", "threads", "sums"), default="fuzz")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="iteration to begin with")
    parser.add_argument("--folder", type=Path, help="keep the program and its files here")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (chosen.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        program = build(folder, chosen.sanitizer)
        done = drive(program, chosen.mode, seeds(folder), chosen.seconds, chosen.seed, chosen.first)
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
