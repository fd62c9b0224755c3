"""Averaged weights, beside timm's."""

import pytest
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from mobilenext.models import EfficientNet
from mobilenext.training.averages import AveragedWeights


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        EfficientNet(width_mult=0.25, num_classes=5, strides=(1, 1, 2, 1, 1)), nn.Linear(5, 2)
    )


@pytest.mark.parametrize(("decay", "warmup"), [(0.9, False), (0.9999, True), (0.3, True)])
def test_the_same_bits_as_timms(decay: float, warmup: bool) -> None:
    followed = network().train()
    ours, theirs = AveragedWeights(followed, decay, warmup), ModelEmaV3(
        followed, decay, use_warmup=warmup
    )  # fmt: skip
    state: dict[str, torch.Tensor] = {}
    optimizer = torch.optim.SGD(followed.parameters(), 1e-3)
    for step in range(1, 6):
        optimizer.zero_grad()
        followed(torch.randn(2, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        ours.update(followed, step)
        theirs.update(followed, step)
        assert ours.decay_at(step) == theirs.get_decay(step)
        expected = theirs.module.state_dict()
        state = ours.module.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in state.items())
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    assert counters
    assert all(state[name] == 5 for name in counters)
    assert not ours.module.training
    assert not all(torch.equal(v, state[n]) for n, v in followed.state_dict().items())
