"""Batches on the device: copy, jitter colours, normalise, erase, mix."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from mobilenext.data.boxes import PADDING
from mobilenext.errors import InputError
from mobilenext.seeding import generator, host_draws


class DeviceBatches:
    """uint8 (N, H, W, 3) on the host to float32 (N, 3, H, W) on the device, normalised.

    Args:
        mean: Channel means of the data, in [0, 1].
        std: Channel standard deviations, in [0, 1].
        device: The network's device.
        channels_last: Memory format of the result; True costs nothing, since pixels come that way.
        fills: Whether targets are `BOX_TARGETS`, and what lies outside of the images gets the mean
            colour.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        channels_last: bool = True,
        fills: bool = False,
    ) -> None:
        self.fills = fills
        self.shift = torch.tensor([255 * value for value in mean], device=device)
        self.scale = torch.tensor([1 / (255 * value) for value in std], device=device)
        self.device = device
        self.channels_last = channels_last
        self.side: torch.cuda.Stream | None = None

    def __call__(
        self, pixels: Tensor, targets: Tensor, augment: "Augment | None" = None
    ) -> tuple[Tensor, Tensor]:
        """Images (N, 3, H, W) and their targets on the device.

        Args:
            pixels: uint8 (N, H, W, 3), on the host or on the device.
            targets: The images' targets as the loader gives them, class indices (N,) for instance.
            augment: Augmentation of these images, set to their batch; or None.
        """
        pixels = pixels.to(self.device, non_blocking=True)
        colours: Tensor = pixels if augment is None else augment.jittered(pixels)
        # By rows of all three colours: short inner loops are slow on CPUs.
        rows, width = colours.flatten(2).float(), colours.shape[2]
        images = rows.sub(self.shift.repeat(width)).mul_(self.scale.repeat(width))
        images = images.unflatten(2, (width, 3))
        targets = targets.to(self.device, non_blocking=True)
        if augment is not None:
            images = augment.erased(images)
        if self.fills:
            images = _filled(images, targets[:, 0, :4])
        images = images.permute(0, 3, 1, 2)
        if not self.channels_last:
            images = images.contiguous()
        return images, targets

    def pictures(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) as they look, uint8 (N, H, W, 3) on the device."""
        colours = images.permute(0, 2, 3, 1) / self.scale + self.shift
        return colours.round().clamp(0, 255).to(torch.uint8)

    def ahead(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches, each copied to a CUDA device while the one before it is being computed.

        The host asks for a batch as soon as it has launched the step before, and the copy has a
        stream of its own. Elsewhere batches pass through.
        """
        if self.device.type != "cuda":
            yield from batches
            return
        if self.side is None:  # one for good: memory is kept for the stream that it was used on
            self.side = torch.cuda.Stream(self.device)
        side, compute = self.side, torch.cuda.current_stream(self.device)
        for batch in batches:
            with torch.cuda.stream(side):
                copied = tuple(part.to(self.device, non_blocking=True) for part in batch)
            compute.wait_stream(side)
            for part in copied:  # its memory must not go to others before this stream is done
                part.record_stream(compute)
            yield copied[0], copied[1]


def _filled(images: Tensor, places: Tensor) -> Tensor:
    """Normalised images (N, H, W, 3), 0 (the mean colour) in all pixels outside of `places` (N, 4).

    A pixel is where its centre is.
    """
    rows = torch.arange(images.shape[1], device=images.device) + 0.5
    columns = torch.arange(images.shape[2], device=images.device) + 0.5
    x0, y0, x1, y1 = places[:, :, None].unbind(1)
    outside_rows = (rows < y0) | (rows > y1)
    outside_columns = (columns < x0) | (columns > x1)
    outside = outside_rows[:, :, None] | outside_columns[:, None]
    return images.masked_fill_(outside[..., None], 0)


class Augment:
    """Colour jitter and random erasing of a batch, with separate draws for each image.

    They come from (seed, epoch, batch) for the global batch, of which a rank takes its slice: the
    images are the same for any world size.

    Args:
        color_jitter: Strength for brightness, contrast, saturation and hue, applied in an order
            drawn for each image, as torchvision's ColorJitter does.
        erasing: Probability of random erasing (arXiv 1708.04896), with torchvision's range of
            areas and ratios; the erased rectangle gets the mean colour.
        seed: The run's seed.
        global_batch_size: Images of all ranks.
        rank: This process.
        world_size: Number of processes.
        cutout: Side of a square of each image that gets the mean colour, in pixels; its centre may
            be any pixel, and what lies beyond the image is cut off (arXiv 1708.04552). None: none.
        compiled: Whether torch.compile makes fewer kernels of the jitter: a device launches some 60
            for each batch, 300 with hue.
    """

    def __init__(
        self,
        color_jitter: Sequence[float],
        erasing: float,
        seed: int,
        global_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        cutout: int | None = None,
        compiled: bool = False,
    ) -> None:
        self.strengths, self.erasing, self.seed = tuple(color_jitter), erasing, seed
        self.cutout = cutout
        self.global_batch_size = global_batch_size
        share = global_batch_size // world_size
        self.mine = slice(rank * share, (rank + 1) * share)
        self.active = [kind for kind, strength in enumerate(self.strengths) if strength > 0]
        self.kinds: Tensor | None = None
        self.jitter = torch.compile(_jittered, dynamic=False) if compiled else _jittered
        self.epoch, self.batch = 0, 0

    def at(self, epoch: int, batch: int) -> "Augment":
        """This object, set to the draws of a batch."""
        self.epoch, self.batch = epoch, batch
        return self

    def jittered(self, pixels: Tensor) -> Tensor:
        """Pixels (N, H, W, 3), uint8 to float32 in [0, 255]; as they are if there is no jitter."""
        if not self.active:
            return pixels
        if self.kinds is None:  # made once: each such copy waits for the device
            self.kinds = torch.tensor(self.active, device=pixels.device)
        draws = self._draws("jitter", 8, pixels.device)
        factors = self._factors(draws[:, :4])
        kinds = self.kinds[draws[:, 4:].index_select(1, self.kinds).argsort(1)]
        return self.jitter(pixels, factors, kinds, self.active[-1] == 3)

    def erased(self, images: Tensor) -> Tensor:
        """Normalised images (N, H, W, 3); 0 is their mean colour."""
        if self.cutout is not None:
            images = self._cut_out(images, self.cutout)
        if self.erasing == 0:
            return images
        tries = 10
        draws = self._draws("erase", 2 * tries + 3, images.device)
        height, width = images.shape[1:3]
        area = height * width * (0.02 + (0.33 - 0.02) * draws[:, :tries])
        low, high = math.log(0.3), math.log(3.3)
        ratio = (low + (high - low) * draws[:, tries : 2 * tries]).exp()
        h, w = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (h < height) & (w < width)
        first = fits.int().argmax(1, keepdim=True)
        erase = fits.any(1, keepdim=True) & (draws[:, -1:] < self.erasing)
        h, w = h.gather(1, first), w.gather(1, first)
        top = (draws[:, -3:-2] * (height - h + 1)).floor()
        left = (draws[:, -2:-1] * (width - w + 1)).floor()
        rows = torch.arange(height, device=images.device)
        columns = torch.arange(width, device=images.device)
        in_rows = (rows >= top) & (rows < top + h) & erase
        in_columns = (columns >= left) & (columns < left + w)
        return images.masked_fill_((in_rows[:, :, None] & in_columns[:, None])[..., None], 0)

    def _cut_out(self, images: Tensor, side: int) -> Tensor:
        height, width = images.shape[1:3]
        draws = self._draws("cutout", 2, images.device)
        inside = []
        for axis, size in enumerate((height, width)):
            first = (draws[:, axis : axis + 1] * size).floor() - side // 2
            places = torch.arange(size, device=images.device)
            inside.append((places >= first) & (places < first + side))
        return images.masked_fill_((inside[0][:, :, None] & inside[1][:, None])[..., None], 0)

    def _draws(self, purpose: str, count: int, device: torch.device) -> Tensor:
        """This rank's uniform numbers in [0, 1), (N, count)."""
        source = generator(purpose, self.seed, self.epoch, self.batch)
        pinned = device.type == "cuda"  # a copy out of other memory may wait for the device
        size = (self.global_batch_size, count)
        draws = torch.rand(size, generator=source, pin_memory=pinned)[self.mine]
        return draws.to(device, non_blocking=True)

    def _factors(self, draws: Tensor) -> Tensor:
        """Jitter factors (N, 4): from max(0, 1 - strength) to 1 + strength; for hue, a shift."""
        columns = []
        for kind, strength in enumerate(self.strengths):
            low, high = (
                (-strength, strength) if kind == 3 else (max(0.0, 1 - strength), 1 + strength)
            )
            columns.append(low + (high - low) * draws[:, kind])
        return torch.stack(columns, 1)


def _jittered(pixels: Tensor, factors: Tensor, kinds: Tensor, hue: bool) -> Tensor:
    """Pixels (N, H, W, 3) with colours jittered, float32 in [0, 255].

    Args:
        pixels: uint8 or float32.
        factors: For each image those of brightness, contrast, saturation and hue, (N, 4).
        kinds: Which of these comes first, second, ..., for each image, int64 (N, at most 4).
        hue: Whether hue is among them.
    """
    colours = pixels.permute(0, 3, 1, 2).float().contiguous()
    for place in range(kinds.shape[1]):
        kind = kinds[:, place]
        factor = factors.gather(1, kind[:, None])[:, :, None, None]
        kind = kind[:, None, None, None]
        blended = _blended(colours, factor, kind)
        if hue:
            blended = torch.where(kind == 3, _turned(colours, factor[:, 0]), blended)
        colours = blended
    return colours.permute(0, 2, 3, 1).contiguous()


class Photometric(Augment):
    """SSD's photometric distortion (arXiv 1512.02325), with separate draws for each image.

    Brightness (up to 32 of 255 are added), contrast and saturation (factors from 0.5 to 1.5), hue
    (up to 18 degrees) and a random order of the channels, each with probability 0.5; contrast comes
    before or after saturation and hue. The draws are those of the global batch, as in `Augment`.

    Args:
        seed: The run's seed.
        global_batch_size: Images of all ranks.
        rank: This process.
        world_size: Number of processes.
    """

    def __init__(
        self, seed: int, global_batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__((0.0, 0.0, 0.0, 0.0), 0.0, seed, global_batch_size, rank, world_size)

    def jittered(self, pixels: Tensor) -> Tensor:
        """Pixels (N, H, W, 3), uint8 to float32 in [0, 255]."""
        draws = self._draws("photometric", 13, pixels.device)
        happens, values = draws[:, :5] < 0.5, 2 * draws[:, 5:9] - 1
        still = torch.zeros((), device=pixels.device)
        brightness, contrast, saturation, hue = (
            torch.where(happens[:, place], values[:, place], still)[:, None, None, None]
            for place in range(4)
        )
        early = (draws[:, 9] < 0.5)[:, None, None, None]
        colours = pixels.permute(0, 3, 1, 2).float().contiguous()
        colours = colours + 32 * brightness
        factor = 1 + 0.5 * contrast
        colours = (colours * torch.where(early, factor, 1)).clamp_(0, 255)
        colours = _turned(_saturated(colours, 1 + 0.5 * saturation), hue[:, 0] * (18 / 360))
        colours = (colours * torch.where(early, 1, factor)).clamp_(0, 255)
        natural = torch.arange(3, device=pixels.device)
        order = torch.where(happens[:, 4:], draws[:, 10:].argsort(1), natural)
        colours = colours.gather(1, order[:, :, None, None].expand_as(colours))
        return colours.permute(0, 2, 3, 1).contiguous()


def _saturated(colours: Tensor, factor: Tensor) -> Tensor:
    """Colours (N, 3, H, W) with their saturation (as in HSV) times a factor (N, 1, 1, 1)."""
    value, low = colours.amax(1, keepdim=True), colours.amin(1, keepdim=True)
    most = value / (value - low).clamp_min(1e-6)
    return value - (value - colours) * torch.minimum(factor, most)


def _blended(colours: Tensor, factor: Tensor, kind: Tensor) -> Tensor:
    """Colours mixed with black (brightness, 0), mean grey (contrast, 1) or grey (saturation, 2).

    Args:
        colours: (N, 3, H, W) in [0, 255].
        factor: Share of the image itself, (N, 1, 1, 1).
        kind: Which of the three, (N, 1, 1, 1).
    """
    red, green, blue = colours.unbind(1)
    # ITU-R BT.601, as Pillow and torchvision have it.
    grey = (0.299 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)[:, None]
    # In float64 sums don't depend on how they are divided among threads.
    exact = torch.float32 if colours.device.type == "mps" else torch.float64
    mean = grey.mean((2, 3), keepdim=True, dtype=exact).float()
    other = torch.where(kind == 2, grey, mean * (kind == 1))
    return torch.lerp(other, colours, factor).clamp_(0, 255)


def _turned(colours: Tensor, shift: Tensor) -> Tensor:
    """Colours (N, 3, H, W) with the hue shifted by a share of the circle, (N, 1, 1)."""
    red, green, blue = colours.unbind(1)
    value, low = colours.amax(1), colours.amin(1)
    spread = value - low
    safe = spread.clamp_min(1e-6)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    hue = torch.where(spread > 0, hue, 0) / 6 + shift
    channels = []
    for offset in (5, 3, 1):  # of red, green and blue on the circle
        place = (offset + 6 * hue) % 6
        channels.append(value - spread * torch.minimum(place, 4 - place).clamp(0, 1))
    return torch.stack(channels, 1)


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
            from timm.data.mixup import Mixup

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
        with host_draws("mix", self.seed, epoch, batch):
            mixed, soft = self.mixup(images[mirrored], labels[mirrored])
        back = mirrored.argsort()
        return mixed[back], soft[back]


def box_texts(targets: Tensor, classes: Sequence[str]) -> list[str]:
    """The classes that are seen in each image of a batch, in words: "dog, 3 person".

    Args:
        targets: `BOX_TARGETS`, (N, 1 + K, 6).
        classes: Names of all of them.
    """
    texts = []
    for rows in targets[:, 1:, 4].tolist():
        counts = Counter(classes[int(label)] for label in rows if label != PADDING)
        names = [name if count == 1 else f"{count} {name}" for name, count in counts.items()]
        texts.append(", ".join(names) or "no object")
    return texts


def target_texts(targets: Tensor, classes: Sequence[str]) -> list[str]:
    """Targets in words: the class, or a line for each class that a mixed image has, with its share.

    Args:
        targets: Class indices (N,), or shares of the classes (N, num_classes).
        classes: Names of all of them.
    """
    if targets.ndim == 1:
        return [classes[int(index)] for index in targets.tolist()]
    texts = []
    most = targets.topk(min(2, targets.shape[1]))
    for shares, indices in zip(*(part.tolist() for part in most), strict=True):
        pairs = [
            (share, classes[int(i)]) for share, i in zip(shares, indices, strict=True) if share > 0
        ]
        lines = [f"{share:.2f} x {name}" for share, name in pairs]
        texts.append("\n".join(lines) if len(pairs) > 1 else pairs[0][1])
    return texts
