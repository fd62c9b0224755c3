"""Norms over the images of neighbouring processes: each rank checks its part, rank 0 prints."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mobilenext.runtime.distributed import process_group
from mobilenext.training.norms import SynchronizedBatchNorm, synchronize

SHARE, CHANNELS = 3, 5


def network() -> nn.Module:
    """A convolution between two norms, the second one without weights."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.BatchNorm2d(CHANNELS), nn.Conv2d(CHANNELS, 4, 3), nn.BatchNorm2d(4, affine=False)
    )
    nn.init.uniform_(layers[0].weight)  # pyright: ignore[reportArgumentType]
    return layers.double()


def ran(layers: nn.Module, images: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs, and the gradient with respect to the images."""
    images = images.clone().requires_grad_()
    outputs = layers(images)
    (outputs * slopes).sum().backward()
    assert images.grad is not None
    return outputs.detach(), images.grad


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group("cpu", 5) as process:
        results = {}
        for ranks in (2, process.world_size):
            source = torch.Generator().manual_seed(ranks)
            count = SHARE * process.world_size
            images = torch.randn((count, CHANNELS, 6, 6), generator=source, dtype=torch.float64)
            slopes = torch.randn((count, 4, 4, 4), generator=source, dtype=torch.float64)
            whole, shared = network(), synchronize(network(), process, ranks)
            assert sum(isinstance(m, SynchronizedBatchNorm) for m in shared.modules()) == 2
            first = process.rank // ranks * ranks * SHARE
            group = slice(first, first + ranks * SHARE)
            mine = slice(process.rank * SHARE, (process.rank + 1) * SHARE)
            outputs, gradient = ran(whole, images[group], slopes[group])
            own, own_gradient = ran(shared, images[mine], slopes[mine])
            here = slice(mine.start - first, mine.stop - first)
            apart = [(own - outputs[here]).abs().max(), (own_gradient - gradient[here]).abs().max()]
            apart += [
                (value - whole.state_dict()[name]).abs().max().double()
                for name, value in shared.state_dict().items()
            ]
            assert list(shared.state_dict()) == list(whole.state_dict())
            results[ranks] = max(process.gather(float(torch.stack(apart).max())))
        # what torch's own norms may be: of vectors, without weights, statistics or fixed momentum
        cases: list[tuple[tuple[int, ...], dict[str, Any]]] = [
            ((5,), {}), ((5, 7), {"momentum": None}), ((5, 2, 2), {"affine": False}),
            ((5, 2, 2), {"track_running_stats": False}),
        ]  # fmt: skip
        for shape, more in cases:
            kind = nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d
            furthest = 0.0
            plain, several = (kind(5, dtype=torch.float64, **more) for _ in range(2))
            shared = synchronize(several, process, process.world_size)
            source = torch.Generator().manual_seed(1)
            count = SHARE * process.world_size
            for _ in range(2):
                images = torch.randn((count, *shape), generator=source, dtype=torch.float64)
                mine = slice(process.rank * SHARE, (process.rank + 1) * SHARE)
                outputs = shared(images[mine]) - plain(images)[mine]
                furthest = max(furthest, outputs.abs().max().item())
            states = zip(shared.state_dict().values(), plain.state_dict().values(), strict=True)
            furthest = max([furthest, *((a - b).abs().double().max().item() for a, b in states)])
            results[f"{shape} {more}"] = max(process.gather(furthest))
    if process.is_main:
        print(json.dumps(results))  # noqa: T201
