"""What the processor can multiply: vectors of floats, and products of 8-bit numbers."""

from pathlib import Path
from typing import NamedTuple

import torch

INT8_PRODUCTS = {
    "amx_int8": "AMX",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX VNNI",
    "i8mm": "I8MM",
    "asimddp": "dot product",
}
"""Names in /proc/cpuinfo of instructions that add up 8-bit products in 32 bits, and in words."""


class Instructions(NamedTuple):
    """A processor's instruction set, as far as it decides speed and results of small networks."""

    vector: str
    """What torch computes floats with: AVX2, AVX512, NEON, ..."""
    int8: str | None
    """Instructions for products of 8-bit numbers that can't overflow; "none": it has none, and some
    runtimes then add pairs of products in 16 bits, which saturates; None: not known."""


def instructions() -> Instructions:
    """Those of this machine's processor."""
    vector = torch.backends.cpu.get_cpu_capability()
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return Instructions(vector, None)
    flags = {
        word
        for line in text.splitlines()
        if line.lower().startswith(("flags", "features"))
        for word in line.partition(":")[2].split()
    }
    return Instructions(
        vector, next((words for flag, words in INT8_PRODUCTS.items() if flag in flags), "none")
    )
