"""Whole trainings in processes of their own, for benchmarks that compare them: ours and timm's."""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

REPO = Path(__file__).resolve().parents[1]


class Trained(NamedTuple):
    """What a run of our train.py left."""

    result: dict[str, Any]
    """Its result.json."""
    epoch: dict[str, Any]
    """The last epoch's row of its metrics.jsonl."""
    peak: float
    """Largest memory of the process, in GB."""


def train(
    overrides: Sequence[str],
    env: Mapping[str, str] | None = None,
    output: IO[str] | int = subprocess.DEVNULL,
) -> Trained:
    """Run our train.py to its end.

    Args:
        overrides: Its arguments, all but output_dir.
        env: Variables beside those of this process.
        output: Gets what it prints.

    Raises:
        SystemExit: It failed, with its exit code.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(REPO / "train.py"), *overrides, f"output_dir={folder}"]
        process = subprocess.Popen(command, env={**os.environ, **(env or {})}, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(process.returncode)
        (run,) = Path(folder).glob("*/*")
        rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        epochs = [row for row in rows if row["kind"] == "epoch"]
        result = json.loads((run / "result.json").read_text())
        return Trained(result, epochs[-1], usage.ru_maxrss / 1e6)


LARGE_IMAGES = ("data=synthetic", "data.image_size=224", "data.global_batch_size=32",
                "data.source.train_images=320", "data.source.val_images=128",
                "runtime.device=cpu", "data.eval_batch_size=128")  # fmt: skip
"""Ten steps on a CPU, without images to decode."""


def in_turns(
    about: str | None,
    one: str,
    other: str,
    measure: Callable[[list[str], str], tuple[float, float]],
) -> None:
    """A script: print images per second and peak memory of two kinds of runs, and the ratios.

    Args:
        about: The script's docstring.
        one: Name of the kind that the ratios are of.
        other: Name of its peer.
        measure: Maps overrides of train.py and a kind to images per second and the peak in GB.
    """
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="each begins with the other kind")
    parser.add_argument("overrides", nargs="*")
    a = parser.parse_args()
    rows = []
    for number in range(a.rounds):
        order = (one, other) if number % 2 == 0 else (other, one)
        found = {kind: measure(a.overrides, kind) for kind in order}
        rows.append(found)
        told = (f"{kind} {found[kind][0]:.1f} images/s, peak {found[kind][1]:.2f} GB"
                for kind in (one, other))  # fmt: skip
        print(f"round {number + 1}: {'; '.join(told)}")
    speed, peak = (
        statistics.median(found[one][place] / found[other][place] for found in rows)
        for place in (0, 1)
    )
    print(f"{one} over {other}, median: {speed:.2f} times the images/s, {peak:.2f} times the peak")


def timm_train(train_py: Path, arguments: Sequence[str]) -> tuple[float, float]:
    """Run timm's train.py for two epochs, our networks known to it.

    Args:
        train_py: The script, of pytorch-image-models.
        arguments: Its arguments, all but --epochs and --output.

    Returns:
        Images per second of the second epoch, and the share of its time that waited for data.

    Raises:
        SystemExit: It told no rate; with the end of what it told.
    """
    program = ("import runpy, sys, mobilenext; sys.argv = sys.argv[1:]; "
               "runpy.run_path(sys.argv[0], run_name='__main__')")  # fmt: skip
    paths = os.pathsep.join([str(REPO), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", program, str(train_py), *arguments, "--epochs", "2",
             "--output", folder],
            text=True, capture_output=True, check=False, env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip
    said = done.stdout + done.stderr
    lines = [line for line in said.splitlines() if "Train: 1 " in line]
    last = lines[-1] if lines else ""
    rate = re.search(r"s, +([\d.]+)/s\)", last)
    data_time = re.search(r"Data: [\d.]+ \(([\d.]+)\)", last)
    step_time = re.search(r"\(([\d.]+)s,", last)
    if not (rate and data_time and step_time):
        raise SystemExit(f"timm's train.py told no rate:\n{said[-3000:]}")
    return float(rate[1]), float(data_time[1]) / float(step_time[1])
