"""Operators and activations of a training pass: what the paper's experiments cost beside another.

    python benchmarks/operators.py

On a GPU a pass of few images takes as long as the host needs to launch its operators, a pass of
many as long as the device needs to move its activations. This prints both of each experiment's
networks, forward and backward pass, over those of MobileNeXt 1.0 at 224 px (the first row, in
absolute numbers): the factors of `mobilenext/tables/experiments.yaml`, which estimates GPU-hours
from the measured times of MobileNeXt 1.0. Operators are counted by torch's dispatcher on a CPU,
views and empty tensors left out; activations are elements that convolutions put out, an image.
Nothing is timed.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mobilenext.assembly.detection import new_detector
from mobilenext.config import register, typed
from mobilenext.config.targets import build
from mobilenext.main import CONFIG_DIR
from mobilenext.metrics.detection import MultiBoxLoss
from mobilenext.models.complexity import measure_complexity
from mobilenext.runtime.distributed import Process
from mobilenext.start import find_job

LAUNCH_NOTHING = {
    "_unsafe_view", "alias", "as_strided", "chunk", "detach", "empty", "empty_like",
    "empty_strided", "expand", "is_same_size", "lift_fresh", "new_empty_strided", "permute",
    "reshape", "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose",
    "unbind", "unsqueeze", "view",
}  # fmt: skip
CLASSIFIERS = (
    "mobilenext", "mobilenetv2", "mnext_s", "mnext_l", "efficientnet_b0",
    "mobilenext_efficientnet_b0", "mobilenext_efficientnet_b0_no_se", "ablation/bottleneck_one",
    "ablation/bottleneck_two", "ablation/thin_ends", "ablation/thin_ends_depthwise_stride",
    "ablation/extra_depthwise", "ablation/activation_all", "ablation/ratio_3",
)  # fmt: skip
CELLS = ("darts_v2", "darts_v2_sandglass3", "darts_v2_inverted_residual3")
SPACES = ("darts", "darts_sandglass", "darts_inverted_residual")
DETECTORS = ("mobilenetv2", "mobilenetv2_expansion", "mobilenext")
CPU = Process(torch.device("cpu"))


class Operators(TorchDispatchMode):
    """Counts the operators that launch something."""

    count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count one and run it."""
        del types
        self.count += func._schema.name.partition("::")[2] not in LAUNCH_NOTHING
        return func(*args, **(kwargs or {}))


def operators(network: nn.Module, size: int, loss: Callable[[nn.Module, Tensor], Tensor]) -> int:
    """Operators of a forward and a backward pass of two images of `size` px."""
    network.train()
    with Operators() as counted:
        loss(network, torch.randn(2, 3, size, size)).backward()
    return counted.count


def cross_entropy(network: nn.Module, images: Tensor) -> Tensor:
    """The loss of a classifier, an auxiliary head left out."""
    logits = network(images)
    logits = logits if isinstance(logits, Tensor) else logits[0]
    return F.cross_entropy(logits, torch.zeros(len(images), dtype=torch.long))


def box_loss(loss: MultiBoxLoss, network: nn.Module, images: Tensor) -> Tensor:
    """The loss of a detector on two boxes an image."""
    boxes = torch.tensor([[10.0, 10, 90, 120, 0, 0], [60, 40, 300, 310, 1, 0]])
    return loss(network, images, boxes.repeat(len(images), 1, 1))[0]


def config(job: str, *overrides: str) -> Any:
    """A job's config."""
    register(find_job(job)[1])
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return typed(compose(job, ["data.root=/data", *overrides]))


def counts() -> Iterator[tuple[str, int, int]]:
    """Name, operators and activations of each network."""
    for name in CLASSIFIERS:
        made = config("train", f"model={name}", "experiment=mobilenext_official")
        network = build(made.model.network, num_classes=1000)
        activations = measure_complexity(network, 224).activations
        yield name, operators(network, 224, cross_entropy), activations
    for name in CELLS:
        made = config("train", "model=darts", f"genotype={name}", "experiment=darts_train")
        network = build(made.model.network, num_classes=10)
        activations = measure_complexity(network, 32).activations
        yield f"darts, {name}", operators(network, 32, cross_entropy), activations
    for name in SPACES:
        network = build(config("search", f"space={name}").model.network, num_classes=10)
        activations = measure_complexity(network, 32).activations
        yield f"supernet, {name}", operators(network, 32, cross_entropy), activations
    for name in DETECTORS:
        given = ("experiment=ssdlite_voc_authors", f"ssdlite={name}", "runtime.fused=false")
        made = config("detect", *given)  # with the operators that a GPU has to launch
        network, cost = new_detector(made, 20, CPU)
        loss = partial(box_loss, MultiBoxLoss(network, made.negatives))  # pyright: ignore[reportArgumentType]
        yield f"SSDLite, {name}", operators(network, 320, loss), cost.activations


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description="Operators and activations of a pass.").parse_args()
    first: tuple[int, int] | None = None
    for name, launched, activations in counts():
        if first is None:
            first = launched, activations
            print(f"{name}: {launched} operators, {activations:,} activations")
        row = f"{launched / first[0]:5.2f} operators, {activations / first[1]:5.2f} activations"
        print(f"{name:<40} {row}", flush=True)


if __name__ == "__main__":
    main()
