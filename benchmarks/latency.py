"""How far estimates of a ratio of two latencies scatter: ours beside timm's way of measuring.

    python benchmarks/latency.py [--repetitions 10] [--size 96] [--no-neighbour]

The ratio is MobileNetV2 over MobileNeXt, width 0.5, eager, one image, one thread. timm's
`benchmark.py` runs 10 times to warm up, then takes the mean of 40 runs, one network after the
other. Ours takes 40 rounds in turns and the median of the ratios of processor time within a round.
Both are repeated, ours and timm's in alternation, on the machine as it is and beside a neighbour
that computes now and then on all cores. Prints (largest - smallest) / median of the estimates.
Target: ours scatters less, in both cases.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from mobilenext.deploy.engines import for_engine, running
from mobilenext.deploy.timing import measure
from mobilenext.models import MobileNetV2, MobileNeXt

WARMUP, RUNS = 10, 40
"""Of timm's benchmark.py."""


def neighbour(seed: int) -> None:
    """Computes for some tenths of a second, rests as long, for ever."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((500, 500)).astype(np.float32)
    while True:
        until = time.monotonic() + random.uniform(0.1, 1.0)
        while time.monotonic() < until:
            np.matmul(values, values)
        time.sleep(random.uniform(0.1, 1.0))


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many other busy processes."""
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=neighbour, args=(n,), daemon=True) for n in range(count)]
    for one in started:
        one.start()
    if started:
        time.sleep(3)
    try:
        yield
    finally:
        for one in started:
            one.terminate()


def means(candidates: list[Callable[[], object]]) -> float:
    """The ratio by timm's way: one after the other, wall time."""
    found = []
    for run in candidates:
        for _ in range(WARMUP):
            run()
        started = time.perf_counter()
        for _ in range(RUNS):
            run()
        found.append(time.perf_counter() - started)
    return found[1] / found[0]


def turns(candidates: list[Callable[[], object]]) -> float:
    """The ratio by ours."""
    _, other = measure(candidates, [0, 0], RUNS, WARMUP, 1e-9, by_cpu=True)
    assert other.ratio is not None
    return other.ratio.median


def spread(values: list[float]) -> float:
    """Largest less smallest, over the median."""
    return (max(values) - min(values)) / statistics.median(values)


def main() -> None:
    """Print estimates and their spread."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--no-neighbour", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pixels = torch.zeros(1, 3, given.size, given.size, dtype=torch.uint8)
    candidates = [
        running("eager", for_engine(network.eval(), "eager", given.size, torch.device("cpu")),
                pixels, 1)
        for network in (MobileNeXt(0.5), MobileNetV2(0.5))
    ]  # fmt: skip
    for count in (0,) if given.no_neighbour else (0, os.cpu_count() or 1):
        ours, timms = [], []
        with neighbours(count):
            for _ in range(given.repetitions):
                ours.append(turns(candidates))
                timms.append(means(candidates))
        print(
            f"{count} neighbours: ours {statistics.median(ours):.3f} spread {spread(ours):.3f}, "
            f"timm's way {statistics.median(timms):.3f} spread {spread(timms):.3f}; "
            f"timm's spread over ours: {spread(timms) / spread(ours):.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
