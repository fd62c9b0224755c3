"""Decoders: from encoded images to a batch of uint8 pixels. They know no targets.

| name | what it is | pixels against Pillow's |
|---|---|---|
| native | ours, in C (`native/`): decodes only the crop, in threads without the GIL | 0.15 of 255 |
| simplejpeg | simplejpeg and OpenCV, both from wheels (`pip install mobilenext[loader]`) | 0.07 |
| torchvision | torchvision's decode_jpeg and torch's antialiased interpolation | 0.03 |
| pillow | Pillow, which reads every format; decodes what the others can't read | the same |
| nvjpeg | torchvision's decode_jpeg on a CUDA device; has not been measured | about 0.03 |

The mean differences are those of bilinear training crops of ImageNet photographs. `DECODERS`, at
the end, is the table of names: what each opens, and what it needs.
"""

import importlib.util
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

from mobilenext.data import native, pillow
from mobilenext.data.encoded import (
    FILTERS,
    VIEW,
    EncodedImages,
    HasChecksums,
    HasRestarts,
    jpeg_frame,
)
from mobilenext.data.restart import stitch
from mobilenext.data.sources import ArrayImages, Images, SyntheticImages
from mobilenext.data.transforms import Transform, is_beyond, is_elongated
from mobilenext.errors import InputError

Bytes = bytes | memoryview

_OTHER_SOURCES = threading.Lock()


@dataclass(frozen=True)
class DecodeRequest:
    """A batch of pixels to fill.

    Attributes:
        images: The split.
        indices: The images to decode, (N,).
        draw_indices: The indices that random crops are drawn for, (N,): an image's own, or that of
            the image whose place it takes.
        transform: Says what is seen of an image.
        seed: The run's seed.
        epoch: Counter of the draws.
        pixels: The batch to fill, uint8 (N, size, size, 3).
        seen: The `VIEW` of each image, (N,), noted when a decoder asks for it.
    """

    images: Images
    indices: np.ndarray
    draw_indices: np.ndarray
    transform: Transform
    seed: int
    epoch: int
    pixels: Tensor
    seen: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seen", np.zeros(len(self.indices), VIEW))

    def views(self, sizes: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """The `VIEW` of each of the images at these positions, by their sizes (N, 2)."""
        draws, own = self.draw_indices[positions], self.indices[positions]
        views = self.transform.views(sizes, draws, self.seed, self.epoch, own)
        self.seen[positions] = views
        return views

    def view(self, size: tuple[int, int], position: int) -> np.void:
        """The `VIEW` of the image at this position."""
        return self.views(np.array([size]), np.array([position]))[0]


Problems = dict[int, str]
"""Unreadable images: the error message of each, by its position in the batch. Their pixels are
undefined."""

Render = Callable[[PIL.Image.Image, np.void], np.ndarray]


class Decoder(Protocol):
    """Fills batches of pixels; several threads may call it at once."""

    description: str
    """The decoder and its version, for logs and results."""

    def allocate(self, count: int, size: int, pin_memory: bool) -> Tensor:
        """Memory for a batch's pixels, uint8 (count, size, size, 3)."""
        ...

    def decode(self, request: DecodeRequest) -> Problems:
        """Fill the batch; returns the images that could not be read."""
        ...

    def close(self) -> None:
        """End the decoder's threads."""
        ...


class NativeDecoder:
    """The decoder of native/."""

    def __init__(self, threads: int) -> None:
        self.pool = native.Pool(threads)
        self.description = native.description()

    def allocate(self, count: int, size: int, pin_memory: bool) -> Tensor:
        """See `Decoder`."""
        return _host_batch(count, size, pin_memory)

    def decode(self, request: DecodeRequest) -> Problems:
        """See `Decoder`."""
        images, positions = request.images, np.arange(len(request.indices))
        render = partial(self._render, request.transform.image_size)
        if isinstance(images, ArrayImages):
            located, fill = images.locate_pixels(request.indices), self.pool.resize
        elif isinstance(images, EncodedImages):
            located, fill = images.locate(request.indices), self.pool.decode
        else:
            return _by_pillow(request, positions, render)
        items = located.items
        try:
            if isinstance(images, EncodedImages):
                self.pool.load(items, pillow.MOST_PIXELS)
            if isinstance(images, HasChecksums):
                images.found_whole(request.indices[items["verify"] == 0])
            good = items["status"] == native.OK
            sizes = np.stack([items["width"], items["height"]], axis=1).astype(np.int64)
            views = request.views(np.where(good[:, None], sizes, 1), positions)
            fill(items, views, request.pixels.numpy())
        finally:
            self.pool.release(items)
        # Other formats and rare kinds of JPEGs; Pillow also words the error of unreadable images.
        return _by_pillow(request, np.flatnonzero(items["status"]), render)

    def _render(self, size: int, image: PIL.Image.Image, view: np.void) -> np.ndarray:
        """The view of an image that Pillow has decoded, resized by native code like all others."""
        one = ArrayImages(np.asarray(image)[None], [0]).locate_pixels(np.array([0]))
        rendered = np.empty((1, size, size, 3), np.uint8)
        self.pool.resize(one.items, np.array([view], view.dtype), rendered)
        return rendered[0]

    def close(self) -> None:
        """See `Decoder`."""
        self.pool.close()


class _PerImageDecoder:
    """Decoder by a library that decodes one image at a time and releases the GIL meanwhile."""

    def __init__(self, threads: int, description: str) -> None:
        self.threads, self.description = threads, description
        self.pool = ThreadPoolExecutor(threads, "decode")

    def allocate(self, count: int, size: int, pin_memory: bool) -> Tensor:
        """See `Decoder`."""
        return _host_batch(count, size, pin_memory)

    def decode(self, request: DecodeRequest) -> Problems:
        """See `Decoder`."""
        positions = np.arange(len(request.indices))
        if not isinstance(request.images, EncodedImages):
            return _by_pillow(request, positions, request.transform.render)
        problems: Problems = {}
        parts = np.array_split(positions, self.threads)
        for part in self.pool.map(lambda some: self._decode(request, some), parts):
            problems |= part
        return problems

    def _decode(self, request: DecodeRequest, positions: np.ndarray) -> Problems:
        images, size = request.images, request.transform.image_size
        assert isinstance(images, EncodedImages)
        left = set(positions.tolist())
        for jpeg in _jpegs(images, request, positions):
            pixels = self.pixels(jpeg, size)
            if pixels is not None:
                request.pixels[jpeg.position] = pixels
                left.remove(jpeg.position)
        return _by_pillow(request, np.array(sorted(left), dtype=np.int64), request.transform.render)

    def pixels(self, jpeg: "_Jpeg", size: int) -> Tensor | None:
        """The pixels of one image, or None: leave it to Pillow.

        Args:
            jpeg: The JPEG to decode.
            size: Height and width of the result.
        """
        raise NotImplementedError

    def close(self) -> None:
        """See `Decoder`."""
        self.pool.shutdown()


class PillowDecoder(_PerImageDecoder):
    """Pillow, for every format."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads, f"Pillow {PIL.__version__}")

    def _decode(self, request: DecodeRequest, positions: np.ndarray) -> Problems:
        return _by_pillow(request, positions, request.transform.render)


class SimplejpegDecoder(_PerImageDecoder):
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

    def pixels(self, jpeg: "_Jpeg", size: int) -> Tensor | None:
        """See `_PerImageDecoder`."""
        try:
            image = self.simplejpeg.decode_jpeg(jpeg.data, "RGB")
        except ValueError:
            return None
        cut = _cut(jpeg, image.shape[:2], size)
        part = image[cut.rows, cut.columns]
        if jpeg.keeps_context or max(part.shape[:2]) > size:
            return _resized(torch.from_numpy(image).permute(2, 0, 1), jpeg, size)
        how = self.filters[jpeg.view["filter"]]
        part = self.cv2.resize(part, (size, size), interpolation=how)
        return torch.from_numpy(self.cv2.flip(part, 1) if jpeg.view["flip"] else part)


class TorchvisionDecoder(_PerImageDecoder):
    """torchvision's decode_jpeg and torch's antialiased interpolation."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads, "torchvision's decode_jpeg")

    def pixels(self, jpeg: "_Jpeg", size: int) -> Tensor | None:
        """See `_PerImageDecoder`."""
        try:
            return _resized(_decode_jpeg(_tensor(jpeg.data)), jpeg, size)
        except RuntimeError:
            return None


class DeviceDecoder:
    """torchvision's decode_jpeg for a batch at a time on a CUDA device, where the pixels stay.

    Its speed has not been measured. On the CPU it does the same, for tests.
    """

    def __init__(self, threads: int, device: torch.device) -> None:
        self.threads, self.device = threads, device
        self.description = f"torchvision's decode_jpeg on {device}"
        self.readers = ThreadPoolExecutor(threads, "read")

    def allocate(self, count: int, size: int, pin_memory: bool) -> Tensor:
        """See `Decoder`."""
        del pin_memory
        return torch.empty((count, size, size, 3), dtype=torch.uint8, device=self.device)

    def decode(self, request: DecodeRequest) -> Problems:
        """See `Decoder`."""
        images, positions = request.images, np.arange(len(request.indices))
        if not isinstance(images, EncodedImages):
            return _by_pillow(request, positions, request.transform.render)

        def read(some: np.ndarray) -> list[_Jpeg]:
            return list(_jpegs(images, request, some))

        parts = self.readers.map(read, np.array_split(positions, self.threads))
        jpegs = [jpeg for part in parts for jpeg in part]
        encoded = [_tensor(jpeg.data) for jpeg in jpegs]
        try:
            decoded = _decode_jpeg(encoded, self.device) if encoded else []
        except RuntimeError:  # one of them is damaged, and it does not say which
            decoded = [self._alone(data) for data in encoded]
        size = request.transform.image_size
        left = set(positions.tolist())
        for jpeg, image in zip(jpegs, decoded, strict=True):
            if image is None:
                continue
            request.pixels[jpeg.position] = _resized(image, jpeg, size)
            left.remove(jpeg.position)
        return _by_pillow(request, np.array(sorted(left), dtype=np.int64), request.transform.render)

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
    frame = jpeg_frame(data)
    if frame is None or frame.components not in (1, 3) or not frame.width * frame.height:
        return None
    return frame.width, frame.height


def _host_batch(count: int, size: int, pin_memory: bool) -> Tensor:
    return torch.empty((count, size, size, 3), dtype=torch.uint8, pin_memory=pin_memory)


def _by_pillow(request: DecodeRequest, positions: np.ndarray, render: Render) -> Problems:
    """Fill these positions with images that Pillow decodes."""
    # Nothing says that several threads may use a source from elsewhere.
    ours = isinstance(request.images, EncodedImages | ArrayImages | SyntheticImages)
    one_at_a_time = nullcontext() if ours else _OTHER_SOURCES
    problems = {}
    for position in positions.tolist():
        try:
            with one_at_a_time:
                image, _ = request.images[int(request.indices[position])]
        except InputError as error:
            problems[position] = str(error)
            continue
        rendered = np.array(render(image, request.view(image.size, position)))
        request.pixels[position] = torch.from_numpy(rendered)
    return problems


@dataclass(frozen=True)
class _Jpeg:
    """A JPEG of one or three components: an image, or a part of it that has what is seen.

    Attributes:
        position: The image's position in the batch.
        data: The encoded bytes.
        view: A `VIEW` of the whole image.
        keeps_context: See `Transform.keep_context`; of this view.
        corner: Where in the whole image this one begins, (x, y) in pixels.
    """

    position: int
    data: Bytes
    view: np.void
    keeps_context: bool
    corner: tuple[int, int] = (0, 0)


def _jpegs(images: EncodedImages, request: DecodeRequest, positions: np.ndarray) -> Iterator[_Jpeg]:
    """The images at these positions, without those that only Pillow can decode."""
    read: list[tuple[int, Bytes]] = []
    sizes: list[tuple[int, int]] = []
    for position in positions.tolist():
        try:
            data = images.read(int(request.indices[position]))
        except InputError:
            continue
        size = jpeg_size(data)
        if size is not None and size[0] * size[1] <= pillow.MOST_PIXELS:
            read.append((position, data))
            sizes.append(size)
    if not read:
        return
    views = request.views(np.array(sizes), np.array([position for position, _ in read]))
    kept = request.transform.keep_context(views).tolist()
    for (position, data), view, keeps_context in zip(read, views, kept, strict=True):
        if is_elongated(view) or is_beyond(view):
            continue  # Pillow can resize a part without shifting the grid of the whole
        jpeg = _Jpeg(position, data, view, keeps_context)
        yield _stitched(images, int(request.indices[position]), jpeg)


def _tensor(data: Bytes) -> Tensor:
    return torch.from_numpy(np.array(np.frombuffer(data, np.uint8)))


def _decode_jpeg(data: Any, device: torch.device | None = None) -> Any:
    from torchvision.io import ImageReadMode, decode_jpeg

    return decode_jpeg(data, mode=ImageReadMode.RGB, device=device or "cpu")


def _resized(image: Tensor, jpeg: _Jpeg, size: int) -> Tensor:
    """The view of a decoded JPEG (3, H, W): uint8 (size, size, 3), antialiased."""
    cut, view = _cut(jpeg, image.shape[1:], size), jpeg.view
    part = image[None, :, cut.rows, cut.columns]
    width, height = cut.resized
    if (height, width) != tuple(part.shape[2:]):
        # Bytes can be interpolated on the host only.
        source = part if part.device.type == "cpu" else part.float()
        mode = FILTERS[view["filter"]]
        part = F.interpolate(source, (height, width), mode=mode, antialias=True)
        part = part.round().clamp(0, 255) if part.is_floating_point() else part
    part = part[0, :, cut.top : cut.top + size, cut.left : cut.left + size]
    return (part.flip(2) if view["flip"] else part).permute(1, 2, 0)


def _stitched(images: EncodedImages, index: int, jpeg: _Jpeg) -> _Jpeg:
    """A smaller JPEG that has what is seen, where restart markers allow it; else the same one."""
    segments = images.segments(index) if isinstance(images, HasRestarts) else None
    if segments is None or jpeg.keeps_context:
        return jpeg  # a part of an image has another grid of resized pixels than the whole
    left, top, right, bottom = jpeg.view["limits"].tolist()
    data, x, y = stitch(jpeg.data, segments, (left, top, right, bottom))
    return replace(jpeg, data=data, corner=(x, y))


@dataclass(frozen=True)
class _Cut:
    """How whole pixels of a decoded JPEG become a view.

    Attributes:
        rows: The rows to resize.
        columns: The columns to resize.
        resized: The (width, height) to resize them to.
        left: Where the view begins in the resized pixels.
        top: Where the view begins in the resized pixels.
    """

    rows: slice
    columns: slice
    resized: tuple[int, int]
    left: int = 0
    top: int = 0


def _cut(jpeg: _Jpeg, shape: Sequence[int], size: int) -> _Cut:
    """The steps from a decoded JPEG of this shape (H, W) to a view of `size` pixels a side."""
    if not jpeg.keeps_context:  # the crop is cut out, then resized
        left, top, right, bottom = jpeg.view["limits"].tolist()
        rows = slice(top - jpeg.corner[1], bottom - jpeg.corner[1])
        columns = slice(left - jpeg.corner[0], right - jpeg.corner[0])
        return _Cut(rows, columns, (size, size))
    # The whole image is resized, then the view is cut out.
    x0, y0, x1, y1 = jpeg.view["box"].tolist()
    x_scale, y_scale = size / (x1 - x0), size / (y1 - y0)
    width, height = max(size, round(shape[1] * x_scale)), max(size, round(shape[0] * y_scale))
    x, y = round((x0 - jpeg.corner[0]) * x_scale), round((y0 - jpeg.corner[1]) * y_scale)
    whole = slice(None)
    return _Cut(whole, whole, (width, height), min(x, width - size), min(y, height - size))


# ---- the table ----


@dataclass(frozen=True)
class DecoderKind:
    """An entry of `DECODERS`.

    Attributes:
        open: Opens the decoder for a number of threads and, if it needs one, a device.
        missing: The reason that it cannot be opened, as a clause behind its name; or None.
        automatic: Whether `auto` may choose it.
        on_device: Whether its pixels are made on the network's device, not on the host.
    """

    open: Callable[[int, torch.device | None], Decoder]
    missing: Callable[[torch.device | None], str | None]
    automatic: bool = False
    on_device: bool = False


def open_decoder(name: str, threads: int, device: torch.device | None = None) -> Decoder:
    """Open a decoder by its name.

    Args:
        name: One of `NAMES`; auto takes the first of native, simplejpeg and torchvision that can
            be opened.
        threads: How many images to decode at a time.
        device: The network's device, for decoders that decode there.

    Raises:
        InputError: There is no such decoder, or what it needs is not installed.
    """
    check_decoder(name)
    threads = max(1, threads)
    if name == "auto":
        return _open_automatic(threads, device)
    kind = DECODERS[name]
    missing = kind.missing(device)
    if missing is not None:
        raise InputError(f"data.decoder={name} {missing}")
    return kind.open(threads, device)


def check_decoder(name: str) -> None:
    """Raise `InputError` if no decoder has this name."""
    if name not in NAMES:
        raise InputError(f"data.decoder={name}: expected one of {', '.join(NAMES)}")


def _open_automatic(threads: int, device: torch.device | None) -> Decoder:
    for kind in DECODERS.values():
        if kind.automatic and kind.missing(device) is None:
            with suppress(ImportError):  # OpenCV without the system's libraries, for instance
                return kind.open(threads, device)
    raise InputError("data.decoder=auto: expected a decoder that can be opened, found none")


def _missing_native(device: torch.device | None) -> str | None:
    del device
    if native.library() is not None:
        return None
    return (
        "needs the native decoder, which was not built; install a C compiler (and libjpeg-turbo's "
        "headers: libjpeg62-turbo-dev), then run pip install again, or use data.decoder=auto"
    )


def _missing_wheels(device: torch.device | None) -> str | None:
    del device
    if all(importlib.util.find_spec(package) for package in ("simplejpeg", "cv2")):
        return None
    return (
        "needs simplejpeg and OpenCV: pip install simplejpeg opencv-python-headless, or use "
        "data.decoder=auto"
    )


def _missing_cuda(device: torch.device | None) -> str | None:
    if device is not None and device.type == "cuda":
        return None
    return (
        "decodes on a CUDA device, and this run is on "
        f"{device.type if device else 'none'}; use data.decoder=auto"
    )


def _missing_nothing(device: torch.device | None) -> str | None:
    del device


def _open_nvjpeg(threads: int, device: torch.device | None) -> Decoder:
    assert device is not None
    return DeviceDecoder(threads, device)


DECODERS = {
    "native": DecoderKind(
        lambda threads, _: NativeDecoder(threads), _missing_native, automatic=True
    ),
    "simplejpeg": DecoderKind(
        lambda threads, _: SimplejpegDecoder(threads), _missing_wheels, automatic=True
    ),
    "torchvision": DecoderKind(
        lambda threads, _: TorchvisionDecoder(threads), _missing_nothing, automatic=True
    ),
    "pillow": DecoderKind(lambda threads, _: PillowDecoder(threads), _missing_nothing),
    "nvjpeg": DecoderKind(_open_nvjpeg, _missing_cuda, on_device=True),
}
"""Decoders by name. `auto` tries those that are automatic in this order."""

NAMES = ("auto", *DECODERS)
"""The values of `data.decoder`."""
