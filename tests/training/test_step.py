"""The optimiser step: what it counts, and that it leaves the network as its own steps would."""

import copy

import torch
import torch.nn.functional as F

from mobilenext.metrics.classification import SmoothedCrossEntropy
from mobilenext.models import MobileNeXt
from mobilenext.runtime.precision import Precision
from mobilenext.training.step import Update

CPU = torch.device("cpu")


def test_norms_count_their_batches() -> None:
    """As many as by themselves, micro-batches too; frozen ones none; same weights, same names."""
    torch.manual_seed(0)
    network = MobileNeXt(width_mult=0.35, num_classes=4, dropout=0.0)
    plain = copy.deepcopy(network)
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    for one in (network, plain):
        one.train()
        one.get_submodule("features.0").eval()
    optimizers = [torch.optim.SGD(one.parameters(), 1e-4) for one in (network, plain)]
    update = Update(network, optimizers[0], Precision("fp32", CPU), micro_batch=2)
    for _ in range(3):
        update((images, labels, labels), SmoothedCrossEntropy())
        for part in (slice(0, 2), slice(2, 4)):
            (F.cross_entropy(plain(images[part]), labels[part]) / 2).backward()
        optimizers[1].step()
        optimizers[1].zero_grad()
    ours, theirs = network.state_dict(), plain.state_dict()
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
    counts = {int(v) for name, v in ours.items() if name.endswith("num_batches_tracked")}
    assert counts == {0, 6}
