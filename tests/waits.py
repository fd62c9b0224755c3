"""Finds, on a machine without a GPU, what would make the host wait for one.

Tensors on a pretended CUDA device have shapes and no values. An operator that needs a value, or
that copies between host and device and blocks, is noted with the line that asked for it.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

PRETENDED = torch.device("cuda", 0)
PACKAGE = Path(__file__).resolve().parents[1] / "mobilenext"
NEEDS_VALUES = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique")


class _Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if self._blocks(func, args, named):
            self.waits.append(f"{func} at {_asked_by()}")
        return func(*args, **named)

    def _blocks(self, func: Any, args: Any, named: Any) -> bool:
        name = func.overloadpacket.__name__ if hasattr(func, "overloadpacket") else str(func)
        if name in NEEDS_VALUES:
            return args[0].device.type == "cuda"
        if name == "_to_copy":
            there = torch.device(named.get("device") or args[0].device)
            return there.type != args[0].device.type and not named.get("non_blocking")
        if name == "copy_":
            blocking = not (named.get("non_blocking") or (len(args) > 2 and args[2]))
            return args[0].device.type != args[1].device.type and blocking
        return False


def _asked_by() -> str:
    frames = [f for f in traceback.extract_stack() if Path(f.filename).is_relative_to(PACKAGE)]
    frame = frames[-1] if frames else traceback.extract_stack()[0]
    return f"{Path(frame.filename).name}:{frame.lineno} ({frame.line})"


@contextmanager
def pretended_cuda() -> Iterator[list[str]]:
    """Within it, `PRETENDED` is a device; the list gets a text for each wait."""
    watch = _Watch()
    with FakeTensorMode(allow_non_fake_inputs=True), watch:
        yield watch.waits


def pinned_rand(monkeypatch: Any) -> list[bool]:
    """Have torch.rand not pin memory, which takes a GPU; whether it was asked to, each time."""
    asked, real = [], torch.rand

    def rand(*size: Any, pin_memory: bool = False, **named: Any) -> Tensor:
        asked.append(pin_memory)
        return real(*size, **named)

    monkeypatch.setattr(torch, "rand", rand)
    return asked
