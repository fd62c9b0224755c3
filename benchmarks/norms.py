"""Training on a CPU with and without the native norms: prints the ratio.

    python benchmarks/norms.py [--rounds 3] [overrides of train.py ...]

Whole runs of our train.py, in turns. Peer: the same command with runtime.fused=false, torch's batch
norms, ReLU6 and additions. Images per second come from result.json, so starting and stopping do not
count; the peak is that of the whole process.
"""

from whole_runs import LARGE_IMAGES, in_turns, train


def trained(overrides: list[str], by: str) -> tuple[float, float]:
    """Images per second and peak memory in GB of a run whose norms are native, or torch's."""
    fused = "null" if by == "native" else "false"
    done = train([*LARGE_IMAGES, *overrides, f"runtime.fused={fused}"])
    assert done.result["norms"] == by, "the native norms were not built, or the network has none"
    return done.result["images_per_second"], done.peak


if __name__ == "__main__":
    in_turns(__doc__, "native", "torch", trained)
