"""Weights that were trained elsewhere, in our MobileNetV2, on real photographs.

The images are probably from the training split: that nearly all are recognised says that the
network computes what it should, and nothing about how well it generalises.
"""

from pathlib import Path

import pytest
import torch

from benchmarks.real_networks import missing, mobilenet_v2, photographs


@pytest.mark.parametrize(
    ("every", "least"), [(3, 100), pytest.param(1, 300, marks=pytest.mark.slow)]
)
def test_real_weights_recognise_photographs(development_data: Path, every: int, least: int) -> None:
    if missing(development_data):
        pytest.skip(f"no {' and no '.join(missing(development_data))} in {development_data}")
    network = mobilenet_v2(development_data)
    plain = mobilenet_v2(development_data, tensorflow=False)
    black = torch.zeros(1, 3, 224, 224)
    assert not torch.equal(plain(black), network(black))  # padding matters
    pixels, labels = photographs(development_data, every)
    with torch.inference_mode():
        found = torch.cat(
            [network((part.float() - 127.5) / 127.5).argmax(1) for part in pixels.split(32)]
        )
    assert len(labels) >= least
    assert 100 * float((found == labels + 1).double().mean()) >= 88
