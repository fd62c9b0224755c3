"""Training on a CPU with short and with long waiting of idle threads: prints the ratio.

    python benchmarks/waiting.py [--rounds 3] [--beside 2] [overrides of train.py ...]

Whole runs of our train.py, in turns, on a machine that does nothing else and beside programs that
keep a core busy each. Peer: the same command with GOMP_SPINCOUNT=300000, what GNU OpenMP does by
itself. Images per second come from result.json, so starting and stopping do not count.
"""

import argparse
import statistics
import subprocess
import sys

from whole_runs import train

SETTINGS = ("width=0.35", "epochs=1", "runtime.device=cpu", "runtime.log_every=1000")


def trained(overrides: list[str], env: dict[str, str]) -> tuple[float, float]:
    """Images per second of a run, and its last loss."""
    result = train([*SETTINGS, *overrides], env).result
    return result["images_per_second"], result["loss"]


def rounds(name: str, number: int, overrides: list[str]) -> None:
    """Runs in turns, then their ratio."""
    ratios = []
    for one in range(number):
        short, long = trained(overrides, {}), trained(overrides, {"GOMP_SPINCOUNT": "300000"})
        assert short[1] == long[1], "another loss"
        print(f"{name}, round {one + 1}: {short[0]:.0f} images/s; waiting long {long[0]:.0f}")
        ratios.append(short[0] / long[0])
    print(f"{name}: short over long waiting, median {statistics.median(ratios):.2f}, same loss")


def main() -> None:
    """Alone, then beside others."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beside", type=int, default=2, help="programs that keep a core busy")
    parser.add_argument("overrides", nargs="*")
    a = parser.parse_args()
    rounds("alone", a.rounds, a.overrides)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(a.beside)]
    try:
        rounds(f"beside {a.beside} busy programs", a.rounds, a.overrides)
    finally:
        for program in busy:
            program.kill()


if __name__ == "__main__":
    main()
