"""Global settings of torch; set for each job, since jobs of a sweep may share a process."""

import os

import torch


def configure_torch(threads: int | None, deterministic: bool) -> None:
    """Set threads and the choice of algorithms.

    Args:
        threads: Of torch in this process; None leaves torch's choice.
        deterministic: Only deterministic algorithms; otherwise cuDNN looks for the fastest.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if deterministic != torch.are_deterministic_algorithms_enabled():
        # Not called without need: it imports torch's compiler, which takes seconds.
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
