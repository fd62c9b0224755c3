"""Number formats of training, through one code path: autocast and gradient scaling."""

import torch

from mobilenext.errors import InputError

PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")


class Precision:
    """How the forward and backward pass of training compute; weights and evaluation are float32.

    Args:
        name: fp32 (IEEE), tf32 (CUDA's fast matrix products for float32), bf16 or fp16 (autocast;
            fp16 scales gradients), or auto: bf16 on CUDA, else fp32.
        device: Where the network is.

    Raises:
        InputError: An unknown name.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        if name not in PRECISIONS:
            raise InputError(
                f"runtime.precision: expected one of {', '.join(PRECISIONS)}, got {name!r}"
            )
        if name == "auto":
            name = "bf16" if device.type == "cuda" else "fp32"
        self.name = name
        self.device = device
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name)
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")
        allow_tf32 = "tf32" if name == "tf32" else "ieee"
        torch.backends.cudnn.conv.fp32_precision = allow_tf32  # pyright: ignore[reportAttributeAccessIssue]
        torch.backends.cuda.matmul.fp32_precision = allow_tf32

    def autocast(self) -> torch.autocast:
        """Wrap the forward pass and the loss in this."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)
