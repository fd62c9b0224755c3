import pytest
import torch

from mobilenext.errors import InputError
from mobilenext.runtime.distributed import process_group
from mobilenext.runtime.precision import Precision, ieee_float32

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16),
     ("fp16", torch.float16), ("auto", torch.float32)],
)  # fmt: skip
def test_what_is_computed_in(name: str, dtype: torch.dtype) -> None:
    precision = Precision(name, CPU)
    layer = torch.nn.Linear(4, 4)
    with precision.autocast():
        out = layer(torch.zeros(1, 4))
    assert out.dtype == dtype
    assert precision.scaler.is_enabled() == (name == "fp16")


def test_float32_is_float32_inside() -> None:
    matmul = torch.backends.cuda.matmul
    try:
        Precision("tf32", CPU)
        with ieee_float32():
            assert matmul.fp32_precision == "ieee"
            assert not torch.backends.cudnn.allow_tf32
        assert matmul.fp32_precision == "tf32"
        assert torch.backends.cudnn.allow_tf32
    finally:
        Precision("fp32", CPU)
    assert matmul.fp32_precision == "ieee"
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("name", ["fp32", "tf32"])
def test_networks_can_be_exported_afterwards(name: str) -> None:
    """Torch reads these flags by another interface than it documents for setting them."""
    try:
        Precision(name, CPU)
        with torch.backends.cudnn.flags(enabled=False):
            pass
        torch.export.export(torch.nn.Conv2d(3, 3, 1), (torch.zeros(1, 3, 4, 4),))
    finally:
        Precision("fp32", CPU)


def test_unknown_precision() -> None:
    with pytest.raises(InputError, match=r"expected one of .*bf16.*, got 'half'"):
        Precision("half", CPU)


def test_unknown_device() -> None:
    with (
        pytest.raises(InputError, match="expected auto, cpu, cuda or mps"),
        process_group("tpu9", 1),
    ):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_device() -> None:
    with pytest.raises(InputError, match="there are 0"), process_group("cuda", 1):
        pass
