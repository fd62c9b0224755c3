"""From encoded images to a batch of uint8 pixels: the native decoder, and what serves without it.

| name | what it is | pixels against Pillow's |
|---|---|---|
| native | ours, in C (`native/`): decodes only the crop, in threads without the GIL | 0.15 of 255 |
| simplejpeg | simplejpeg and OpenCV, both from wheels (`pip install mobilenext[loader]`) | 0.07 |
| torchvision | torchvision's decode_jpeg and torch's antialiased interpolation | 0.03 |
| pillow | Pillow, which reads every format; decodes what the others can't read | the same |
| nvjpeg | torchvision's decode_jpeg on a CUDA device; has not been measured | about 0.03 |

The mean differences are those of bilinear training crops of ImageNet photographs.
"""

import importlib.util
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

from mobilenext.data import native, pillow
from mobilenext.data.encoded import FILTERS, EncodedImages, HasChecksums, HasRestarts
from mobilenext.data.restart import stitch
from mobilenext.data.sources import ArrayImages, Images, SyntheticImages
from mobilenext.data.transforms import Transform, is_elongated
from mobilenext.errors import InputError

NAMES = ("auto", "native", "simplejpeg", "torchvision", "pillow", "nvjpeg")

Bytes = bytes | memoryview

_OTHER_SOURCES = threading.Lock()


@dataclass(frozen=True)
class Order:
    """A batch to be made.

    Attributes:
        images: The split.
        chosen: Which of its images, (N,).
        keys: Which draws each of them gets, (N,): its own index, or that of the one it replaces.
        transform: Says what is seen of an image.
        seed: The run's seed.
        epoch: Counter of the draws.
        pixels: To be filled, uint8 (N, size, size, 3).
        labels: To be filled, int64 (N,).
    """

    images: Images
    chosen: np.ndarray
    keys: np.ndarray
    transform: Transform
    seed: int
    epoch: int
    pixels: Tensor
    labels: Tensor

    def views(self, sizes: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """What is seen of the images at these positions: a `VIEW` for each size (N, 2)."""
        return self.transform.views(sizes, self.keys[positions], self.seed, self.epoch)

    def view(self, size: tuple[int, int], position: int) -> np.void:
        """What is seen of the image at this position."""
        return self.views(np.array([size]), np.array([position]))[0]


Problems = dict[int, str]
"""By position in the batch, what is wrong with an image; its pixels are undefined."""

Render = Callable[[PIL.Image.Image, np.void], np.ndarray]


class Decoder(Protocol):
    """Fills batches; may be called by several threads at once."""

    description: str
    """For logs and results."""

    def allocate(self, count: int, size: int, pin_memory: bool) -> Tensor:
        """A batch's pixels to be, uint8 (count, size, size, 3)."""
        ...

    def decode(self, order: Order) -> Problems:
        """Fill a batch; returns which images could not be read."""
        ...

    def close(self) -> None:
        """End its threads."""
        ...


def open_decoder(name: str, threads: int, device: torch.device | None = None) -> Decoder:
    """The decoder of that name.

    Args:
        name: One of `NAMES`; auto takes the first of native, simplejpeg, torchvision that is there.
        threads: How many images to decode at a time.
        device: For nvjpeg: where to.

    Raises:
        InputError: There is no such decoder, or what it needs is not installed.
    """
    threads = max(1, threads)
    if name not in NAMES:
        raise InputError(f"data.decoder={name}: expected one of {', '.join(NAMES)}")
    wheels = all(importlib.util.find_spec(package) for package in ("simplejpeg", "cv2"))
    if name == "auto":
        name = "native" if native.library() else "simplejpeg" if wheels else "torchvision"
        if name == "simplejpeg":
            try:
                return SimplejpegDecoder(threads)
            except ImportError:  # OpenCV without the system's libraries, for instance
                name = "torchvision"
    if name == "native" and native.library() is None:
        raise InputError(
            "data.decoder=native: the native decoder was not built; install a C compiler (and "
            "libjpeg-turbo's headers: libjpeg62-turbo-dev), then run pip install again, or use "
            "data.decoder=auto"
        )
    if name == "simplejpeg" and not wheels:
        raise InputError(
            "data.decoder=simplejpeg needs simplejpeg and OpenCV: "
            "pip install simplejpeg opencv-python-headless, or use data.decoder=auto"
        )
    if name == "nvjpeg":
        if device is None or device.type != "cuda":
            raise InputError(
                "data.decoder=nvjpeg decodes on a CUDA device, and this run is on "
                f"{device.type if device else 'none'}; use data.decoder=auto"
            )
        return DeviceDecoder(threads, device)
    kinds = {
        "native": NativeDecoder,
        "simplejpeg": SimplejpegDecoder,
        "torchvision": TorchvisionDecoder,
        "pillow": PillowDecoder,
    }
    return kinds[name](threads)


class NativeDecoder:
    """The decoder of native/."""

    def __init__(self, threads: int) -> None:
        self.pool = native.Pool(threads)
        self.description = native.description()

    def allocate(self, count: int, size: int, pin_memory: bool) -> Tensor:
        """See `Decoder`."""
        return _host_batch(count, size, pin_memory)

    def decode(self, order: Order) -> Problems:
        """See `Decoder`."""
        images, positions = order.images, np.arange(len(order.chosen))
        render = partial(self._render, order.transform.image_size)
        if isinstance(images, ArrayImages):
            located, fill = images.locate_pixels(order.chosen), self.pool.resize
        elif isinstance(images, EncodedImages):
            located, fill = images.locate(order.chosen), self.pool.decode
        else:
            return _by_pillow(order, positions, render)
        items = located.items
        try:
            if isinstance(images, EncodedImages):
                self.pool.load(items, pillow.MOST_PIXELS)
            if isinstance(images, HasChecksums):
                images.found_whole(order.chosen[items["verify"] == 0])
            order.labels.copy_(torch.from_numpy(images.labels[order.chosen].astype(np.int64)))
            good = items["status"] == native.OK
            sizes = np.stack([items["width"], items["height"]], axis=1).astype(np.int64)
            views = order.views(np.where(good[:, None], sizes, 1), positions)
            fill(items, views, order.pixels.numpy())
        finally:
            self.pool.release(items)
        # Other formats, and JPEGs of rare kinds; it also finds the words for what nobody can read.
        return _by_pillow(order, np.flatnonzero(items["status"]), render)

    def _render(self, size: int, image: PIL.Image.Image, view: np.void) -> np.ndarray:
        """What Pillow has decoded, resized as all other images are."""
        one = ArrayImages(np.asarray(image)[None], [0]).locate_pixels(np.array([0]))
        rendered = np.empty((1, size, size, 3), np.uint8)
        self.pool.resize(one.items, np.array([view], view.dtype), rendered)
        return rendered[0]

    def close(self) -> None:
        """See `Decoder`."""
        self.pool.close()


class _ByImage:
    """Decoders whose libraries do one image at a time and let go of the GIL meanwhile."""

    def __init__(self, threads: int, description: str) -> None:
        self.threads, self.description = threads, description
        self.pool = ThreadPoolExecutor(threads, "decode")

    def allocate(self, count: int, size: int, pin_memory: bool) -> Tensor:
        """See `Decoder`."""
        return _host_batch(count, size, pin_memory)

    def decode(self, order: Order) -> Problems:
        """See `Decoder`."""
        positions = np.arange(len(order.chosen))
        if not isinstance(order.images, EncodedImages):
            return _by_pillow(order, positions, order.transform.render)
        problems: Problems = {}
        parts = np.array_split(positions, self.threads)
        for part in self.pool.map(lambda some: self._decode(order, some), parts):
            problems |= part
        return problems

    def _decode(self, order: Order, positions: np.ndarray) -> Problems:
        images, size = order.images, order.transform.image_size
        assert isinstance(images, EncodedImages)
        left = set(positions.tolist())
        for position, data, view, corner in _seen(images, order, positions):
            pixels = self.pixels(data, view, corner, size)
            if pixels is not None:
                order.pixels[position] = pixels
                order.labels[position] = int(images.labels[order.chosen[position]])
                left.remove(position)
        return _by_pillow(order, np.array(sorted(left), dtype=np.int64), order.transform.render)

    def pixels(
        self, data: Bytes, view: np.void, corner: tuple[int, int], size: int
    ) -> Tensor | None:
        """The pixels of one image, or None: leave it to Pillow.

        Args:
            data: A JPEG of one or three components that has what is seen.
            view: A `VIEW` of the whole image.
            corner: Where in the whole image this one begins.
            size: Height and width of the result.
        """
        raise NotImplementedError

    def close(self) -> None:
        """See `Decoder`."""
        self.pool.shutdown()


class PillowDecoder(_ByImage):
    """Pillow for everything."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads, f"Pillow {PIL.__version__}")

    def _decode(self, order: Order, positions: np.ndarray) -> Problems:
        return _by_pillow(order, positions, order.transform.render)


class SimplejpegDecoder(_ByImage):
    """simplejpeg decodes; OpenCV enlarges crops, and torch does what needs antialiasing.

    OpenCV has no antialiased filters. Its averages over areas would make bilinear and bicubic the
    same wherever a crop shrinks.
    """

    def __init__(self, threads: int) -> None:
        import cv2  # pyright: ignore[reportMissingImports]
        import simplejpeg  # pyright: ignore[reportMissingImports]

        cv2.setNumThreads(1)
        self.cv2, self.simplejpeg = cv2, simplejpeg
        self.filters = (cv2.INTER_LINEAR, cv2.INTER_CUBIC)
        super().__init__(threads, f"simplejpeg and OpenCV {cv2.__version__}")

    def pixels(
        self, data: Bytes, view: np.void, corner: tuple[int, int], size: int
    ) -> Tensor | None:
        """See `_ByImage`."""
        try:
            image = self.simplejpeg.decode_jpeg(data, "RGB")
        except ValueError:
            return None
        cut = _cut(view, corner, image.shape[:2], size)
        part = image[cut.rows, cut.columns]
        if (view["box"] != view["limits"]).any() or max(part.shape[:2]) > size:
            return _resized(torch.from_numpy(image).permute(2, 0, 1), view, corner, size)
        how = self.filters[view["filter"]]
        part = self.cv2.resize(part, (size, size), interpolation=how)
        return torch.from_numpy(self.cv2.flip(part, 1) if view["flip"] else part)


class TorchvisionDecoder(_ByImage):
    """torchvision's decode_jpeg and torch's antialiased interpolation."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads, "torchvision's decode_jpeg")

    def pixels(
        self, data: Bytes, view: np.void, corner: tuple[int, int], size: int
    ) -> Tensor | None:
        """See `_ByImage`."""
        try:
            return _resized(_decode_jpeg(_tensor(data)), view, corner, size)
        except RuntimeError:
            return None


class DeviceDecoder:
    """torchvision's decode_jpeg for a batch at a time on a CUDA device, where the pixels stay.

    Not measured: no GPU has run it. On the CPU it does the same, for tests.
    """

    def __init__(self, threads: int, device: torch.device) -> None:
        self.threads, self.device = threads, device
        self.description = f"torchvision's decode_jpeg on {device}"
        self.readers = ThreadPoolExecutor(threads, "read")

    def allocate(self, count: int, size: int, pin_memory: bool) -> Tensor:
        """See `Decoder`."""
        del pin_memory
        return torch.empty((count, size, size, 3), dtype=torch.uint8, device=self.device)

    def decode(self, order: Order) -> Problems:
        """See `Decoder`."""
        images, positions = order.images, np.arange(len(order.chosen))
        if not isinstance(images, EncodedImages):
            return _by_pillow(order, positions, order.transform.render)

        def look(some: np.ndarray) -> list[tuple[int, Bytes, np.void, tuple[int, int]]]:
            return list(_seen(images, order, some))

        parts = self.readers.map(look, np.array_split(positions, self.threads))
        found = [one for part in parts for one in part]
        encoded = [_tensor(data) for _, data, _, _ in found]
        try:
            decoded = _decode_jpeg(encoded, self.device) if encoded else []
        except RuntimeError:  # one of them is damaged, and it does not say which
            decoded = [self._alone(data) for data in encoded]
        size = order.transform.image_size
        left = set(positions.tolist())
        for (position, _, view, corner), image in zip(found, decoded, strict=True):
            if image is None:
                continue
            order.pixels[position] = _resized(image, view, corner, size)
            order.labels[position] = int(images.labels[order.chosen[position]])
            left.remove(position)
        return _by_pillow(order, np.array(sorted(left), dtype=np.int64), order.transform.render)

    def _alone(self, data: Tensor) -> Tensor | None:
        try:
            return _decode_jpeg(data, self.device)
        except RuntimeError:
            return None

    def close(self) -> None:
        """See `Decoder`."""
        self.readers.shutdown()


def jpeg_size(data: Bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG of one or three components; None if it is not one."""
    if bytes(data[:2]) != b"\xff\xd8":
        return None
    place = 2
    while place + 9 < len(data):
        if data[place] != 0xFF:
            return None
        marker = data[place + 1]
        if marker == 0xFF:
            place += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(data[place + at : place + at + 2]) for at in (5, 7))
            return (width, height) if data[place + 9] in (1, 3) and width and height else None
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4])
    return None


def _host_batch(count: int, size: int, pin_memory: bool) -> Tensor:
    return torch.empty((count, size, size, 3), dtype=torch.uint8, pin_memory=pin_memory)


def _by_pillow(order: Order, positions: np.ndarray, render: Render) -> Problems:
    """Fill these positions with what Pillow decodes."""
    # Of sources from elsewhere nothing says that several threads may use them.
    ours = isinstance(order.images, EncodedImages | ArrayImages | SyntheticImages)
    one_at_a_time = nullcontext() if ours else _OTHER_SOURCES
    problems = {}
    for position in positions.tolist():
        try:
            with one_at_a_time:
                image, label = order.images[int(order.chosen[position])]
        except InputError as error:
            problems[position] = str(error)
            continue
        rendered = np.array(render(image, order.view(image.size, position)))
        order.pixels[position] = torch.from_numpy(rendered)
        order.labels[position] = label
    return problems


def _seen(
    images: EncodedImages, order: Order, positions: np.ndarray
) -> Iterator[tuple[int, Bytes, np.void, tuple[int, int]]]:
    """The JPEGs among these images: position, bytes that a decoder needs, view, their corner.

    Those that only Pillow can do are left out.
    """
    found: list[tuple[int, Bytes]] = []
    sizes: list[tuple[int, int]] = []
    for position in positions.tolist():
        try:
            data = images.read(int(order.chosen[position]))
        except InputError:
            continue
        size = jpeg_size(data)
        if size is not None and size[0] * size[1] <= pillow.MOST_PIXELS:
            found.append((position, data))
            sizes.append(size)
    if not found:
        return
    views = order.views(np.array(sizes), np.array([position for position, _ in found]))
    for (position, data), view in zip(found, views, strict=True):
        if is_elongated(view):
            continue  # Pillow can resize a part without shifting the grid of the whole
        yield position, *_stitched(images, int(order.chosen[position]), data, view)


def _tensor(data: Bytes) -> Tensor:
    return torch.from_numpy(np.array(np.frombuffer(data, np.uint8)))


def _decode_jpeg(data: Any, device: torch.device | None = None) -> Any:
    from torchvision.io import ImageReadMode, decode_jpeg

    return decode_jpeg(data, mode=ImageReadMode.RGB, device=device or "cpu")


def _resized(image: Tensor, view: np.void, corner: tuple[int, int], size: int) -> Tensor:
    """A view of a decoded part (3, H, W) of an image: uint8 (size, size, 3), antialiased."""
    cut = _cut(view, corner, image.shape[1:], size)
    part = image[None, :, cut.rows, cut.columns]
    width, height = cut.resized
    if (height, width) != tuple(part.shape[2:]):
        # Bytes can be interpolated on the host only.
        given = part if part.device.type == "cpu" else part.float()
        mode = FILTERS[view["filter"]]
        part = F.interpolate(given, (height, width), mode=mode, antialias=True)
        part = part.round().clamp(0, 255) if part.is_floating_point() else part
    part = part[0, :, cut.top : cut.top + size, cut.left : cut.left + size]
    return (part.flip(2) if view["flip"] else part).permute(1, 2, 0)


def _stitched(
    images: EncodedImages, index: int, data: Bytes, view: np.void
) -> tuple[Bytes, np.void, tuple[int, int]]:
    """A smaller JPEG that has what is seen, where restart markers allow it; view; its corner."""
    segments = images.segments(index) if isinstance(images, HasRestarts) else None
    limits = view["limits"].tolist()
    if segments is None or limits != view["box"].tolist():
        # Views of evaluation lie on the grid of the whole resized image: a part would shift it.
        return data, view, (0, 0)
    left, top, right, bottom = limits
    stitched, x, y = stitch(data, segments, (left, top, right, bottom))
    return stitched, view, (x, y)


@dataclass(frozen=True)
class _Cut:
    """How to make a view of a decoded part of an image by steps of whole pixels.

    Attributes:
        rows: Which rows of the part to resize.
        columns: Which columns.
        resized: The (width, height) to resize them to.
        left: Corner of the result in that.
        top: Corner of the result in that.
    """

    rows: slice
    columns: slice
    resized: tuple[int, int]
    left: int = 0
    top: int = 0


def _cut(view: np.void, corner: tuple[int, int], shape: Sequence[int], size: int) -> _Cut:
    left, top, right, bottom = view["limits"].tolist()
    x0, y0, x1, y1 = view["box"].tolist()
    if (x0, y0, x1, y1) == (left, top, right, bottom):
        rows = slice(top - corner[1], bottom - corner[1])
        return _Cut(rows, slice(left - corner[0], right - corner[0]), (size, size))
    # The whole image is resized and the view cut out, as evaluation does.
    x_scale, y_scale = size / (x1 - x0), size / (y1 - y0)
    width, height = max(size, round(shape[1] * x_scale)), max(size, round(shape[0] * y_scale))
    x, y = round((x0 - corner[0]) * x_scale), round((y0 - corner[1]) * y_scale)
    whole = slice(None)
    return _Cut(whole, whole, (width, height), min(x, width - size), min(y, height - size))
