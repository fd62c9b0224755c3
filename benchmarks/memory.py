"""Training on a CPU with and without freed memory kept for the next step: prints the ratio.

    python benchmarks/memory.py [--rounds 3] [overrides of train.py ...]

Whole runs of our train.py, in turns. Peer: the same command with MALLOC_CHECK_=0, a setting of
glibc's that changes nothing but that we then leave glibc as it is (`mobilenext.runtime.memory`).
Images per second come from result.json, so starting and stopping do not count; the peak is that of
the whole process.
"""

from whole_runs import LARGE_IMAGES, in_turns, train


def trained(overrides: list[str], kind: str) -> tuple[float, float]:
    """Images per second and peak memory in GB of a run that keeps freed memory, or not."""
    done = train([*LARGE_IMAGES, *overrides], {} if kind == "kept" else {"MALLOC_CHECK_": "0"})
    kept = done.result["hardware"]["freed_memory"] == "kept"
    assert kept == (kind == "kept"), "no glibc here?"
    return done.result["images_per_second"], done.peak


if __name__ == "__main__":
    in_turns(__doc__, "kept", "as glibc has it", trained)
