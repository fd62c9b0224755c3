"""What happens to a batch on the device: copy, normalise, mix."""

from collections.abc import Sequence

import torch
from timm.data.mixup import Mixup
from torch import Tensor

from mobilenext.errors import InputError
from mobilenext.seeding import seed_host


class DeviceBatches:
    """uint8 (N, H, W, 3) on the host to float32 (N, 3, H, W) on the device, normalised.

    Args:
        mean: Channel means of the data, in [0, 1].
        std: Channel standard deviations, in [0, 1].
        device: Where the network is.
        channels_last: Memory format of the result; True costs nothing, since pixels come that way.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        channels_last: bool = True,
    ) -> None:
        self.shift = torch.tensor([255 * value for value in mean], device=device)
        self.scale = torch.tensor([1 / (255 * value) for value in std], device=device)
        self.device = device
        self.channels_last = channels_last

    def __call__(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, 3, H, W) and labels (N,) on the device."""
        pixels = pixels.to(self.device, non_blocking=True)
        images = pixels.sub(self.shift).mul_(self.scale).permute(0, 3, 1, 2)
        if not self.channels_last:
            images = images.contiguous()
        return images, labels.to(self.device, non_blocking=True)


class Mixing:
    """Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) by timm, between neighbours.

    timm pairs an image with the one at the mirrored place of its batch, so the partner would depend
    on how many ranks share the batch. Here images 2i and 2i + 1 are partners, in an order that is
    random already, and the draws come from (seed, epoch, batch): the mixed batch is the same for
    any world size that leaves each rank an even share.

    Args:
        mixup: Alpha of mixup's Beta distribution; 0 turns it off.
        cutmix: Alpha of CutMix's Beta distribution; 0 turns it off. With both, a coin decides.
        num_classes: Length of the soft labels.
        seed: The run's seed.
    """

    def __init__(self, mixup: float, cutmix: float, num_classes: int, seed: int) -> None:
        self.seed = seed
        self.mixup = None
        if mixup > 0 or cutmix > 0:
            self.mixup = Mixup(mixup, cutmix, label_smoothing=0.0, num_classes=num_classes)

    def __call__(
        self, images: Tensor, labels: Tensor, epoch: int, batch: int
    ) -> tuple[Tensor, Tensor]:
        """Mixed images and soft labels (N, num_classes); the arguments themselves if mixing is off.

        Args:
            images: This rank's part of the batch, (N, 3, H, W); N has to be even.
            labels: Class indices (N,).
            epoch: Counter of the draws.
            batch: Counter of the draws.

        Raises:
            InputError: N is odd.
        """
        if self.mixup is None:
            return images, labels
        if len(images) % 2:
            raise InputError(
                f"mixup and cutmix pair images: expected an even number of images on each process, "
                f"got {len(images)}; change data.global_batch_size"
            )
        places = torch.arange(len(images), device=images.device)
        mirrored = torch.cat((places[0::2], places[1::2].flip(0)))
        seed_host("mix", self.seed, epoch, batch)
        mixed, soft = self.mixup(images[mirrored], labels[mirrored])
        back = mirrored.argsort()
        return mixed[back], soft[back]
