"""Number formats of training, through one code path: autocast and gradient scaling."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mobilenext.errors import InputError

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


def resolve_precision(name: str, device: torch.device) -> str:
    """The name itself, or what auto means on this device: bf16 on CUDA, else fp32.

    Raises:
        InputError: An unknown name.
    """
    if name not in ("auto", *PRECISIONS):
        raise InputError(
            f"runtime.precision: expected one of auto, {', '.join(PRECISIONS)}, got {name!r}"
        )
    if name != "auto":
        return name
    return "bf16" if device.type == "cuda" else "fp32"


class Precision:
    """Number formats of the forward and backward pass of training; weights are always float32.

    Args:
        name: fp32 (IEEE), tf32 (CUDA's fast matrix products for float32), bf16 or fp16 (autocast;
            fp16 scales gradients, and its scaler waits for the device once a step), or auto.
        device: Where the network is.

    Raises:
        InputError: An unknown name.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = resolve_precision(name, device)
        self.device = device
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.name)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.name == "fp16")
        _allow_tf32(self.name == "tf32")

    def autocast(self) -> torch.autocast:
        """Wrap the forward pass and the loss in this."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)


@contextmanager
def ieee_float32() -> Iterator[None]:
    """Compute float32 as float32 inside, also where training uses TF32."""
    before = bool(torch.backends.cuda.matmul.allow_tf32)
    _allow_tf32(False)
    try:
        yield
    finally:
        _allow_tf32(before)


def _allow_tf32(allowed: bool) -> None:
    # By the older of torch's two interfaces: after the newer one has been used, torch.export and
    # `torch.backends.cudnn.flags` raise, since they read the older one's state (torch 2.14).
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
