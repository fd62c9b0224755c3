"""Training on a CPU with and without freed memory kept for the next step: prints the ratio.

    python benchmarks/memory.py [--rounds 3] [overrides of train.py ...]

Whole runs of our train.py, in turns. Peer: the same command with MALLOC_CHECK_=0, a setting of
glibc's that changes nothing but that we then leave glibc as it is (`mobilenext.runtime.memory`).
Images per second come from result.json, so starting and stopping do not count; the peak is that of
the whole process.
"""

import argparse

from whole_runs import in_turns, train

SETTINGS = ("data=synthetic", "data.image_size=224", "data.global_batch_size=32",
            "data.source.train_images=320", "data.source.val_images=128", "runtime.device=cpu",
            "data.eval_batch_size=128")  # fmt: skip


def trained(overrides: list[str], env: dict[str, str]) -> tuple[float, float]:
    """Images per second and peak memory in GB of a run."""
    done = train([*SETTINGS, *overrides], env)
    assert (done.result["hardware"]["freed_memory"] == "kept") == (not env), "no glibc here?"
    return done.result["images_per_second"], done.peak


def main() -> None:
    """Rounds in turns, then the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*")
    a = parser.parse_args()
    settings = {"kept": {}, "as glibc has it": {"MALLOC_CHECK_": "0"}}
    kept, peer = settings
    in_turns(kept, peer, lambda kind: trained(a.overrides, settings[kind]), a.rounds)


if __name__ == "__main__":
    main()
