"""Kill a training run again and again, and see whether it ends as if nothing had happened.

    python benchmarks/resume_torture.py --kills 100
    python benchmarks/resume_torture.py --kills 30 --processes 2 --seed 7

Trains on scanned digits (they come with the package) once without interruption, then once more
while a generator with a printed seed decides when SIGKILL ends the run and all its processes, or
SIGTERM asks it to end (one time in four), and the same command starts it again. Then compares
weights, averages, optimiser, metrics, TensorBoard and result, bit for bit; exit code 1 if anything
differs.
"""

import argparse
import collections
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from tests.compare import run_differences  # noqa: E402

RECIPE = ("width=0.35", "data.global_batch_size=48", "ema_decay=0.99", "augment.mixup=0.2",
          "runtime.log_every=5", "checkpoint.every_minutes=0",
          "checkpoint.max_share=0.3")  # fmt: skip


def start(folder: Path, epochs: int, processes: int) -> subprocess.Popen[str]:
    """The command, in a process group of its own."""
    launcher = []
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [sys.executable, *launcher, str(REPO / "train.py"), *RECIPE, f"epochs={epochs}"],
        cwd=folder,
        env={
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": str(1 if processes > 1 else 2),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(process: subprocess.Popen[str], seconds: float) -> bool:
    """Whether the process ended within the time."""
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def sessions(folder: Path) -> list[dict]:
    """What sessions.jsonl of the only run says so far."""
    found = list(folder.glob("runs/*/*/sessions.jsonl"))
    return [json.loads(line) for path in found for line in path.read_text().splitlines()]


def end(process: subprocess.Popen[str], kind: str) -> None:
    """SIGKILL to the whole tree (torchrun's processes have groups of their own), else a wish."""
    groups = [process.pid]
    if kind == "SIGKILL":
        listed = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False
        )
        groups += [int(child) for child in listed.stdout.split()]
    for group in groups:
        with contextlib.suppress(ProcessLookupError):  # a loader process, in its parent's group
            os.killpg(group, getattr(signal, kind))


def wait_for_start(folder: Path, process: subprocess.Popen[str]) -> None:
    """Until the session has begun to train: kills while Python imports would show little."""
    before = len(sessions(folder))
    while process.poll() is None and len(sessions(folder)) == before:
        time.sleep(0.02)


def torture(
    folder: Path, arguments: argparse.Namespace, generator: random.Random
) -> collections.Counter[str]:
    """Start the run until it is finished; returns how often it was ended and how."""
    ends: collections.Counter[str] = collections.Counter()
    while True:
        process = start(folder, arguments.epochs, arguments.processes)
        wait_for_start(folder, process)
        left_alone = sum(ends.values()) >= arguments.kills
        if wait_for(process, 3600 if left_alone else generator.uniform(0, arguments.longest)):
            if process.returncode:
                print(process.communicate()[0])
                raise SystemExit(f"a session failed with exit code {process.returncode}")
            return ends
        kind = "SIGTERM" if generator.random() < 0.25 else "SIGKILL"
        end(process, kind)
        if not wait_for(process, 60):
            raise SystemExit(f"the run did not end within a minute after {kind}")
        ends[kind] += 1
        steps = [row["step"] for row in sessions(folder) if row["event"] == "start"]
        if sum(ends.values()) % 10 == 0:
            print(
                f"{sum(ends.values())} times ended, last started after step {steps[-1]}", flush=True
            )


def main() -> None:
    """The two runs and the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="most times to end the run")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=35)
    parser.add_argument("--longest", type=float, default=3.0, help="seconds of training at most")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    many = "process" if arguments.processes == 1 else "processes"
    about = f"seed {arguments.seed}, {arguments.processes} {many}, {arguments.epochs} epochs"
    print(about, flush=True)
    with tempfile.TemporaryDirectory() as place:
        calm, tortured = Path(place) / "calm", Path(place) / "tortured"
        for folder in (calm, tortured):
            folder.mkdir()
        begun = time.monotonic()
        process = start(calm, arguments.epochs, arguments.processes)
        out, _ = process.communicate()
        if process.returncode:
            raise SystemExit(out)
        alone = time.monotonic() - begun
        print(f"without interruption: {alone:.0f} s", flush=True)
        begun = time.monotonic()
        ends = torture(tortured, arguments, random.Random(arguments.seed))
        took = time.monotonic() - begun
        rows = sessions(tortured)
        starts = [row for row in rows if row["event"] == "start"]
        steps = [row["step"] for row in starts]
        print(
            f"ended {sum(ends.values())} times ({dict(ends)}), begun {len(starts)} times, "
            f"from steps {steps[:3]} ... {steps[-3:]}; {took:.0f} s"
        )
        (one,), (two,) = calm.glob("runs/*/*"), tortured.glob("runs/*/*")
        found = run_differences(one, two)
    print(f"final state equals the uninterrupted run's: {'NO' if found else 'yes'}")
    for text in found:
        print(f"  {text}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
