"""Training on a CPU with and without the native norms: prints the ratio.

    python benchmarks/norms.py [--rounds 3] [overrides of train.py ...]

Whole runs of our train.py, in turns. Peer: the same command with runtime.fused=false, torch's batch
norms, ReLU6 and additions. Images per second come from result.json, so starting and stopping do not
count; the peak is that of the whole process.
"""

import argparse

from whole_runs import in_turns, train

SETTINGS = ("data=synthetic", "data.image_size=224", "data.global_batch_size=32",
            "data.source.train_images=320", "data.source.val_images=128", "runtime.device=cpu",
            "data.eval_batch_size=128")  # fmt: skip


def trained(overrides: list[str], by: str) -> tuple[float, float]:
    """Images per second and peak memory in GB of a run whose norms are native, or torch's."""
    done = train([*SETTINGS, *overrides, f"runtime.fused={'null' if by == 'native' else 'false'}"])
    assert done.result["norms"] == by, "the native norms were not built, or the network has none"
    return done.result["images_per_second"], done.peak


def main() -> None:
    """Rounds in turns, then the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*")
    a = parser.parse_args()
    in_turns("native", "torch", lambda by: trained(a.overrides, by), a.rounds)


if __name__ == "__main__":
    main()
