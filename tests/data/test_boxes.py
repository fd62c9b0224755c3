"""Boxes follow their pixels: views, batches and targets of detection, and colours on the device."""

import colorsys
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor

from mobilenext.data import (
    Boxes,
    BoxImages,
    BoxTransform,
    DeviceBatches,
    Photometric,
    box_texts,
    box_transforms,
    eval_loader,
    image_folder,
    native,
    train_loader,
    train_transform,
)
from mobilenext.data.boxes import BOX_TARGETS, PADDING
from mobilenext.data.decoders import DecodeRequest, DeviceDecoder, open_decoder
from mobilenext.data.drawing import DASH, TRUTH, colour_of, draw_boxes, words_on
from mobilenext.data.encoded import FILTERS, VIEW
from mobilenext.data.loader import Batch, Loader
from mobilenext.data.orders import epoch_order
from mobilenext.data.sources import ArrayImages
from mobilenext.data.transforms import covered, limits_within, render_beyond
from mobilenext.errors import InputError
from mobilenext.jobs.train import train
from mobilenext.runtime.distributed import Process
from tests.composed import TINY, composed, placed
from tests.jpegs import photo

# torchvision 0.29 announces that TorchCodec will take over.
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")

CPU = torch.device("cpu")
GROUND, LIGHT = 40, 220
"""Red and green of the ground, and of an object in its own channel: the other one is as before, so
that each channel says how much of a pixel is its object's."""
SIZE = 96
ROOMY = 12
"""Pixels of a batch: a box with shorter sides is too small to be found again within 5 %."""


def together(parts: Sequence[Tensor]) -> Tensor:
    """Parts of a batch; targets of fewer boxes than others get more rows of padding."""
    most = max(part.shape[1] for part in parts)
    padding = torch.tensor([0.0, 0, 0, 0, PADDING, 0])
    return torch.cat([
        part if part.shape[1] == most or part.ndim > 3 else
        torch.cat([part, padding.expand(len(part), most - part.shape[1], BOX_TARGETS)], dim=1)
        for part in parts
    ])  # fmt: skip


def needs_native() -> None:
    if native.library() is None:
        pytest.skip("the native decoder was not built (no C compiler?)")


def boxes_of(
    images: list[list[tuple[list[float], int, bool]]], sizes: list[tuple[int, int]]
) -> Boxes:
    """Boxes of images whose objects are given as (box, label, difficult)."""
    every = [one for objects in images for one in objects]
    counts = [len(objects) for objects in images]
    return Boxes(
        np.array([box for box, _, _ in every], np.float32).reshape(-1, 4),
        np.array([label for _, label, _ in every], np.int32),
        np.array([hard for _, _, hard in every], bool),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        np.array(sizes, np.int32).reshape(-1, 2),
    )


# ---- pictures with a red and a green object ----

EMPTY = 5
"""The picture without an object."""
SIDES = ((300, 200), (200, 300), (150, 150), (420, 120), (90, 260), (64, 48), (333, 251))


def rectangle(random: np.random.Generator, width: int, height: int, edge: bool) -> list[int]:
    """A box of whole pixels; one in the image's edge if asked, others well inside."""
    w, h = (int(random.integers(side // 6, side // 2)) for side in (width, height))
    left = int(random.integers(4, width - w - 3))
    top = int(random.integers(4, height - h - 3))
    if edge and random.random() < 0.5:
        left = 0 if random.random() < 0.5 else width - w
    elif edge:
        top = 0 if random.random() < 0.5 else height - h
    return [left, top, left + w, top + h]


def apart(one: list[int], other: list[int]) -> bool:
    """Whether there is some ground between two boxes."""
    return (
        one[2] + 6 < other[0] or other[2] + 6 < one[0]
        or one[3] + 6 < other[1] or other[3] + 6 < one[1]
    )  # fmt: skip


def paint(path: Path, size: tuple[int, int], objects: list[tuple[list[int], int]]) -> None:
    pixels = np.full((size[1], size[0], 3), (GROUND, GROUND, 90), np.uint8)
    for (x0, y0, x1, y1), label in objects:
        pixels[y0:y1, x0:x1, label] = LIGHT
    PIL.Image.fromarray(pixels).save(path, quality=95, subsampling=0)


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> BoxImages:
    """40 pictures with a red object (class 0), a green one (class 1), or both; one with none."""
    root, random = tmp_path_factory.mktemp("painted"), np.random.default_rng(0)
    found: list[list[tuple[list[float], int, bool]]] = []
    sizes = [SIDES[number % len(SIDES)] for number in range(40)]
    for number, size in enumerate(sizes):
        objects: list[tuple[list[int], int]] = []
        for label in [] if number == EMPTY else ([0], [1], [0, 1], [1, 0])[number % 4]:
            box = rectangle(random, *size, edge=number % 5 == 0)
            while not all(apart(box, other) for other, _ in objects):
                box = rectangle(random, *size, edge=number % 5 == 0)
            objects.append((box, label))
        paint(root / f"{number}.jpg", size, objects)
        found.append([([float(edge) for edge in box], label, False) for box, label in objects])
    paths = np.array([f"{number}.jpg".encode() for number in range(40)])
    return BoxImages(root, paths, boxes_of(found, sizes))


def augmented(images: BoxImages, size: int = SIZE, **changes: float) -> BoxTransform:
    settings = {"zoom_out": 4.0, "iou_crop": True, "hflip": 0.5} | changes
    return BoxTransform(size, images.boxes, **settings)  # pyright: ignore[reportArgumentType]


def loader(images: BoxImages, **changes: object) -> Loader:
    settings = {"seed": 3, "global_batch_size": 20, "decoder": "auto"} | changes
    transform = settings.pop("transform", None) or augmented(images)
    return train_loader(images, transform, **settings)  # pyright: ignore[reportArgumentType]


def filled(pixels: Tensor, targets: Tensor) -> np.ndarray:
    """The batch as the network sees it, as pictures; grey outside of the images."""
    batches = DeviceBatches([0.5] * 3, [0.25] * 3, CPU, fills=True)
    return batches.pictures(batches(pixels, targets)[0]).numpy()


def found_box(picture: np.ndarray, label: int) -> list[float] | None:
    """Where the object of this channel lies, to parts of a pixel."""
    outside = (picture == 128).all(2)
    share = ((picture[..., label] - float(GROUND)) / (LIGHT - GROUND)).clip(0, 1)
    share[outside] = 0
    # Of a resized object, what lies beside its middle adds up to half its extent, however soft its
    # edges are.
    rows, columns = (np.flatnonzero((share > 0.5).any(axis)) for axis in (1, 0))
    if not len(rows) or min(len(rows), len(columns)) < 4:
        return None
    edges = []
    for axis, across in ((0, rows), (1, columns)):
        third = len(across) // 3
        inner = across[third : len(across) - third]
        profile = share.take(inner, axis=axis).mean(axis)
        along = columns if axis == 0 else rows
        middle = int(along[len(along) // 2])
        edges.append((middle - profile[:middle].sum(), middle + profile[middle:].sum()))
    return [edges[0][0], edges[1][0], edges[0][1], edges[1][1]]


def iou(one: list[float], other: list[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return common / (sum(areas) - common)


def assert_boxes_are_found(pixels: Tensor, targets: Tensor) -> int:
    """Each box that has some room is found again in the pixels; how many there are."""
    count = 0
    for picture, rows in zip(filled(pixels, targets), targets.tolist(), strict=True):
        for *box, label, _ in rows[1:]:
            if label == PADDING or min(box[2] - box[0], box[3] - box[1]) < ROOMY:
                continue
            seen = found_box(picture, int(label))
            assert seen is not None, (rows[0], box)
            # Pixels on the image's edge are seen as a whole, or not at all.
            at_edge = any(
                abs(edge - limit) < 0.01 and 0.01 < limit < SIZE - 0.01
                for edge, limit in zip(box, rows[0][:4], strict=True)
            )
            off = max(abs(a - b) for a, b in zip(seen, box, strict=True))
            assert off <= 0.6 if at_edge else iou(seen, box) >= 0.95, (rows[0], box, seen)
            count += 1
    return count


@pytest.mark.parametrize(("decoder", "epochs"), [("native", 25), ("pillow", 4)])
def test_boxes_are_found_again_in_the_pixels(painted: BoxImages, decoder: str, epochs: int) -> None:
    if decoder == "native":
        needs_native()
    batches = loader(painted, decoder=decoder)
    views = boxes = 0
    for epoch in range(epochs):
        for pixels, targets in batches.epoch(epoch):
            boxes += assert_boxes_are_found(pixels, targets)
            views += len(pixels)
    batches.close()
    assert views == 40 * epochs
    assert boxes > 0.75 * views


def test_a_shifted_box_would_not_be_found(painted: BoxImages) -> None:
    """What the test above takes for equal is near."""
    pixels, targets = next(loader(painted).epoch(0))
    targets[:, 1:, [0, 2]] += 1.5
    with pytest.raises(AssertionError):
        assert_boxes_are_found(pixels, targets)


def test_objects_whose_centre_is_not_seen_are_left_out(painted: BoxImages) -> None:
    transform, every = augmented(painted), painted.boxes
    indices, hidden = np.arange(40), 0
    for epoch in range(10):
        views = transform.views(every.sizes.astype(np.int64), indices, 3, epoch)
        targets = transform.targets(painted, indices, views)
        for index, view, rows in zip(indices.tolist(), views, targets.tolist(), strict=True):
            x0, y0, x1, y1 = view["box"].tolist()
            expected = []
            for place in range(*every.of(index).indices(len(every.labels))):
                left, top, right, bottom = every.boxes[place].tolist()
                if x0 < (left + right) / 2 < x1 and y0 < (top + bottom) / 2 < y1:
                    expected.append(int(every.labels[place]))
                else:
                    hidden += 1
            assert [row[4] for row in rows[1:] if row[4] != PADDING] == expected
    assert hidden > 20


# ---- views beyond the image, by every decoder ----


@dataclass(frozen=True)
class Shown(BoxTransform):
    """Views that a test has chosen, one for each image."""

    chosen: np.ndarray | None = None

    def views(
        self,
        sizes: np.ndarray,
        indices: np.ndarray,
        seed: int,
        epoch: int,
        own: np.ndarray | None = None,
    ) -> np.ndarray:
        del sizes, seed, epoch, own
        assert self.chosen is not None
        return self.chosen[indices]


WIDTH, HEIGHT, OUT = 200, 150, 48
SHOWN = {
    "left": (-31.3, 20.6, 88.2, 120.1),
    "top": (30.2, -40.7, 150.9, 90.3),
    "right": (120.4, 20.2, 260.6, 140.9),
    "bottom": (50.5, 70.1, 141.3, 199.6),
    "all": (-60.25, -33.5, 290.75, 260.5),
    "whole pixels": (-48, -48, 248, 240),
    "little of it": (-40.2, -30.1, 12.7, 10.4),
    "enlarged left": (-9.3, 40.2, 13.5, 61.7),
    "enlarged right and bottom": (180.6, 131.2, 213.3, 160.4),
    "inside": (20.0, 30.0, 120.0, 110.0),
}
DECODERS = {"native": 1.0, "simplejpeg": 0.25, "torchvision": 0.25, "pillow": 0.25, "device": 0.25}
"""Mean difference of 255, where there is an image. Beside its edge the native decoder averages over
pixels of the image alone, where the reference repeats the edge; the others leave what lies beyond
to Pillow, which may begin with the other direction."""
DEEP = 0.25
"""The same, further inside than a filter reaches."""


def shown_views() -> np.ndarray:
    choices = list(itertools.product(SHOWN.values(), (0, 1), range(len(FILTERS))))
    views = np.zeros(len(choices), VIEW)
    for view, (box, flip, kind) in zip(views, choices, strict=True):
        view["box"], view["flip"], view["filter"] = box, flip, kind
    views["limits"] = limits_within(views["box"], np.array([[WIDTH, HEIGHT]]))
    return views


def reference(image: np.ndarray, view: np.void) -> np.ndarray:
    """A view of a canvas with repeated edges."""
    x0, y0, x1, y1 = view["box"].tolist()
    left, right = max(0, int(np.floor(x0))), min(WIDTH, int(np.ceil(x1)))
    top, bottom = max(0, int(np.floor(y0))), min(HEIGHT, int(np.ceil(y1)))
    margins = [400 * beyond for beyond in (x0 < 0, y0 < 0, x1 > WIDTH, y1 > HEIGHT)]
    around = ((margins[1], margins[3]), (margins[0], margins[2]), (0, 0))
    canvas = PIL.Image.fromarray(np.pad(image[top:bottom, left:right], around, mode="edge"))
    dx, dy = margins[0] - left, margins[1] - top
    how = (PIL.Image.Resampling.BILINEAR, PIL.Image.Resampling.BICUBIC)[view["filter"]]
    pixels = canvas.resize((OUT, OUT), how, box=(x0 + dx, y0 + dy, x1 + dx, y1 + dy))
    return np.asarray(pixels)[:, :: -1 if view["flip"] else 1].astype(float)


def inside(view: np.void, reach: float = 0) -> np.ndarray:
    """The pixels whose centre is in the image, `reach` filters away from its edge, (OUT, OUT)."""
    x0, y0, x1, y1 = view["box"].tolist()
    centres, within = (np.arange(OUT) + 0.5) / OUT, []
    for low, high, side in ((x0, x1, WIDTH), (y0, y1, HEIGHT)):
        margin = reach * (1 + view["filter"]) * max(1, (high - low) / OUT)
        place = low + centres * (high - low)
        within.append((place > margin) & (place < side - margin))
    return (within[1][:, None] & within[0])[:, :: -1 if view["flip"] else 1]


@pytest.fixture(scope="module")
def beyond(tmp_path_factory: pytest.TempPathFactory) -> BoxImages:
    """One photograph, as often as there are views."""
    root = tmp_path_factory.mktemp("beyond")
    photo().crop((100, 150, 100 + WIDTH, 150 + HEIGHT)).save(root / "a.jpg", quality=95)
    count = len(shown_views())
    boxes = boxes_of([[] for _ in range(count)], [(WIDTH, HEIGHT)] * count)
    return BoxImages(root, np.array([b"a.jpg"] * count), boxes)


@pytest.mark.parametrize("name", DECODERS)
def test_views_beyond_the_image_are_those_of_repeated_edges(beyond: BoxImages, name: str) -> None:
    if name == "native":
        needs_native()
    if name == "simplejpeg":
        pytest.importorskip("simplejpeg")
        pytest.importorskip("cv2")
    views = shown_views()
    transform = Shown(OUT, beyond.boxes, chosen=views)
    indices = np.arange(len(views))
    pixels = torch.full((len(views), OUT, OUT, 3), 77, dtype=torch.uint8)
    request = DecodeRequest(beyond, indices, indices, transform, 0, 0, pixels)
    decoder = DeviceDecoder(2, CPU) if name == "device" else open_decoder(name, 2)
    assert decoder.decode(request) == {}
    decoder.close()
    targets = transform.targets(beyond, indices, request.seen)
    images, _ = DeviceBatches([0.5, 0.4, 0.3], [0.2] * 3, CPU, fills=True)(pixels, targets)
    image, mean = np.asarray(beyond[0][0]), torch.tensor([0.5, 0.4, 0.3])
    for position, view in enumerate(views):
        off = np.abs(pixels[position].numpy() - reference(image, view))
        assert off[inside(view)].mean() <= DECODERS[name], view
        assert off[inside(view, 1)].mean() <= DEEP, view
        there, shown = torch.from_numpy(inside(view).copy()), images[position].permute(1, 2, 0)
        assert (shown[~there] == 0).all(), view
        expected = (pixels[position] / 255 - mean) / 0.2
        assert torch.allclose(shown[there], expected[there], atol=1e-5), view


def test_a_view_beyond_the_image_says_where_the_image_lies() -> None:
    views = np.zeros(2, VIEW)
    views["box"], views["limits"] = (-100, -50, 300, 150), (0, 0, 200, 150)
    views["flip"] = 0, 1
    assert covered(views, 80).tolist() == [[20, 20, 60, 80], [20, 20, 60, 80]]
    views["box"] = (-100, 0, 200, 150)
    assert covered(views, 90).tolist() == [[30, 0, 90, 90], [0, 0, 60, 90]]


@pytest.mark.parametrize("corner", [(-999.0, -999.0), (199.5, 149.5)])
def test_an_image_that_is_hardly_seen_is_rendered(corner: tuple[float, float]) -> None:
    """Less than a pixel of it."""
    image = photo().crop((0, 0, WIDTH, HEIGHT))
    view = np.zeros(1, VIEW)
    view["box"] = (*corner, corner[0] + 999.5, corner[1] + 999.5)
    view["limits"] = limits_within(view["box"], np.array([[WIDTH, HEIGHT]]))
    assert render_beyond(image, view[0], 32).shape == (32, 32, 3)


# ---- batches ----


def taken(batches: Loader, epoch: int) -> list[Batch]:
    made = list(batches.epoch(epoch))
    batches.close()
    return made


def assert_same(one: list[Batch], two: list[Batch]) -> None:
    assert len(one) == len(two) > 0
    for (pixels, targets), (others, other_targets) in zip(one, two, strict=True):
        assert torch.equal(targets, other_targets)
        assert torch.equal(pixels, others)


def joined(ranks: list[list[Batch]]) -> list[Batch]:
    return [
        (torch.cat([pixels for pixels, _ in shares]), together([boxes for _, boxes in shares]))
        for shares in zip(*ranks, strict=True)
    ]


@pytest.mark.parametrize("decoder", ["auto", "pillow"])
def test_batches_are_the_same_for_any_number_of_workers_and_processes(
    painted: BoxImages, decoder: str
) -> None:
    whole = taken(loader(painted, decoder=decoder), 5)
    for workers in (2, 8):
        assert_same(whole, taken(loader(painted, decoder=decoder, workers=workers), 5))
    for count in (2, 4):
        ranks = [
            taken(loader(painted, decoder=decoder, rank=rank, world_size=count), 5)
            for rank in range(count)
        ]
        assert_same(whole, joined(ranks))


def test_epochs_and_seeds_differ(painted: BoxImages) -> None:
    by_index = []
    for seed, epoch in ((3, 5), (3, 6), (4, 5)):
        batches = taken(loader(painted, seed=seed), epoch)
        pixels, targets = (together(parts) for parts in zip(*batches, strict=True))
        place = targets[:, 0, 4].argsort()  # in the order of the split: views are what differs
        by_index.append((pixels[place], targets[place]))
    for pixels, targets in by_index[1:]:
        assert (pixels != by_index[0][0]).flatten(1).any(1).float().mean() > 0.9
        assert not torch.equal(targets, by_index[0][1])


def spoiled(images: BoxImages, root: Path, bad: set[int]) -> BoxImages:
    """The same images in another folder; some are no images there."""
    for index in range(len(images)):
        data = b"no picture" if index in bad else images.read(index)
        (root / images.relative(index)).write_bytes(data)
    return BoxImages(root, images.paths, images.boxes)


BAD = {1, 2, 9, 17, 23, 39}


@pytest.mark.parametrize("decoder", ["auto", "pillow"])
def test_a_substitute_comes_with_its_own_boxes(
    painted: BoxImages, tmp_path: Path, decoder: str
) -> None:
    images = spoiled(painted, tmp_path, BAD)
    # A canvas as large as the image: each view has an object then, if the image's own boxes chose.
    transform = augmented(images, zoom_out=1.0)

    def made(epoch: int, **more: int) -> list[Batch]:
        settings = {"transform": transform, "decoder": decoder, "on_bad_image": "skip"}
        return taken(loader(images, **settings, **more), epoch)

    taken_for = set()
    for epoch in range(6):
        batches = made(epoch)
        order = epoch_order(40, 3, epoch).tolist()
        for number, (pixels, targets) in enumerate(batches):
            assert_boxes_are_found(pixels, targets)
            wanted = order[20 * number : 20 * (number + 1)]
            # The draws are those of the image whose place it takes.
            used = targets[:, 0, 4].numpy().astype(np.int64)
            sizes = images.boxes.sizes[used].astype(np.int64)
            views = transform.views(sizes, np.array(wanted), 3, epoch, own=used)
            assert torch.equal(transform.targets(images, used, views), targets)
            for position, index in enumerate(used.tolist()):
                assert index not in BAD
                if wanted[position] in BAD:
                    taken_for.add((wanted[position], index))
                    there = int((targets[position, 1:, 4] != PADDING).sum())
                    assert there >= (index != EMPTY)
                else:
                    assert index == wanted[position]
    assert len(taken_for) > 20  # of 36: another one in each epoch
    whole = made(2)
    assert_same(whole, made(2, workers=3))
    assert_same(whole, joined([made(2, rank=rank, world_size=2) for rank in range(2)]))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_leaves_an_unreadable_image_and_its_row_out(
    painted: BoxImages, tmp_path: Path, workers: int
) -> None:
    bad = BAD | set(range(8, 16))
    images = spoiled(painted, tmp_path, bad)
    batches = eval_loader(
        images, BoxTransform(SIZE, images.boxes), batch_size=8, workers=workers,
        on_bad_image="skip", whole_batches=True,
    )  # fmt: skip
    made = taken(batches, 0)
    seen = [index for _, targets in made for index in targets[:, 0, 4].int().tolist()]
    assert seen == [index for index in range(40) if index not in bad]
    assert batches.unreadable.keys() == bad
    assert len(made) == 4  # the second has no image at all
    for pixels, targets in made:
        assert len(pixels) == len(targets)
        assert_boxes_are_found(pixels, targets)


@pytest.mark.parametrize("batch_size", [1, 7, 8, 40, 64])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_whole_batches_are_shared_in_turns(painted: BoxImages, batch_size: int, count: int) -> None:
    expected = [list(range(40))[at : at + batch_size] for at in range(0, 40, batch_size)]
    for rank in range(count):
        batches = eval_loader(
            painted, BoxTransform(8, painted.boxes), batch_size=batch_size, rank=rank,
            world_size=count, whole_batches=True,
        )  # fmt: skip
        assert len(batches) == len(expected[rank::count])
        seen = [targets[:, 0, 4].int().tolist() for _, targets in batches.epoch(0)]
        assert seen == expected[rank::count]
        seen = [targets[:, 0, 4].int().tolist() for _, targets in batches.epoch(1, 1)]
        assert seen == expected[rank::count][1:]
        batches.close()


def test_evaluation_squeezes_whole_images(painted: BoxImages) -> None:
    batches = eval_loader(painted, BoxTransform(SIZE, painted.boxes), batch_size=40)
    ((pixels, targets),) = taken(batches, 0)
    assert targets[:, 0, :4].tolist() == [[0, 0, SIZE, SIZE]] * 40
    assert int((targets[:, 1:, 4] != PADDING).sum()) == len(painted.labels)
    assert assert_boxes_are_found(pixels, targets) > 40


# ---- targets ----


def many(images: int = 60, hard: float = 0.3) -> Boxes:
    """Boxes of all sizes in images of all sizes; no picture belongs to them."""
    random = np.random.default_rng(1)
    sizes = [(int(w), int(h)) for w, h in random.integers(20, 500, (images, 2))]
    found: list[list[tuple[list[float], int, bool]]] = []
    for number, (width, height) in enumerate(sizes):
        objects: list[tuple[list[float], int, bool]] = []
        for _ in range(0 if number % 10 == 3 else int(random.integers(1, 9))):
            x, y = np.sort(random.random((2, 2)) ** random.choice([1, 3]), axis=1)
            box = [x[0] * width, y[0] * height, x[1] * width, y[1] * height]
            objects.append((box, int(random.integers(0, 20)), bool(random.random() < hard)))
        found.append(objects)
    return boxes_of(found, sizes)


def plainly(every: Boxes, index: int, view: np.void, size: int) -> list[list[float]]:
    """The targets of one image, without the padding."""
    x0, y0, x1, y1 = view["box"].tolist()
    width, height = every.sizes[index].tolist()

    def placed_at(box: list[float]) -> list[float]:
        left, right = ((x - x0) / (x1 - x0) * size for x in (box[0], box[2]))
        top, bottom = ((y - y0) / (y1 - y0) * size for y in (box[1], box[3]))
        if view["flip"]:
            left, right = size - right, size - left
        return [min(max(edge, 0.0), size) for edge in (left, top, right, bottom)]

    rows = [[*placed_at([0, 0, width, height]), index, 0]]
    for place in range(int(every.starts[index]), int(every.starts[index + 1])):
        box = every.boxes[place].astype(float).tolist()
        if not x0 < (box[0] + box[2]) / 2 < x1 or not y0 < (box[1] + box[3]) / 2 < y1:
            continue
        there = placed_at(box)
        if there[2] - there[0] >= 1 and there[3] - there[1] >= 1:
            rows.append([*there, int(every.labels[place]), int(every.difficult[place])])
    return rows


@pytest.mark.parametrize("size", [24, 320])
def test_targets_are_those_of_plain_arithmetic(size: int) -> None:
    every = many()
    images = BoxImages(Path(), np.array([b"none"] * len(every)), every)
    transform = augmented(images, size)
    indices = np.random.default_rng(2).permutation(np.repeat(np.arange(len(every)), 2))
    small = hard = 0
    for epoch in range(3):
        views = transform.views(every.sizes[indices].astype(np.int64), indices, 0, epoch)
        targets = transform.targets(images, indices, views)
        assert targets.dtype == torch.float32
        assert targets.shape == (len(indices), 1 + 8, BOX_TARGETS)  # an image has eight boxes
        for index, view, rows in zip(indices.tolist(), views, targets.numpy(), strict=True):
            expected = np.array(plainly(every, index, view, size))
            assert np.allclose(rows[: len(expected)], expected, atol=1e-3)
            assert (rows[len(expected) :] == [0, 0, 0, 0, PADDING, 0]).all()
            small += len(expected) < 1 + len(every.labels[every.of(index)])
            hard += int(rows[1:, 5].sum())
    assert small > 10
    assert hard > 10


def test_a_split_without_objects_has_one_row_of_padding() -> None:
    every = boxes_of([[], []], [(10, 10), (20, 10)])
    images = BoxImages(Path(), np.array([b"none"] * 2), every)
    transform = augmented(images, 10)
    indices = np.arange(2)
    views = transform.views(every.sizes.astype(np.int64), indices, 0, 0)
    targets = transform.targets(images, indices, views)
    assert targets[:, 1:].tolist() == [[[0, 0, 0, 0, PADDING, 0]]] * 2
    assert transform.targets(images, indices[:0], views[:0]).shape == (0, 2, BOX_TARGETS)


def test_the_least_side_of_an_object() -> None:
    sides = [(1.99, 50.0), (2.0, 50.0), (50.0, 1.99), (50.0, 2.0)]
    objects = [([10.0, 10.0, 10 + w, 10 + h], place, False) for place, (w, h) in enumerate(sides)]
    every = boxes_of([objects], [(100, 100)])
    images = BoxImages(Path(), np.array([b"none"]), every)
    transform = BoxTransform(50, every)  # two pixels of the image are one
    views = transform.views(np.array([[100, 100]]), np.array([0]), 0, 0)
    targets = transform.targets(images, np.array([0]), views)
    assert targets[0, 1:, 4].tolist() == [1, 3, PADDING, PADDING]


def test_some_boxes_of_a_split() -> None:
    every = many()
    chosen = np.array([7, 3, 7, 59])
    some = every.taken(chosen)
    assert len(some) == 4
    for place, index in enumerate(chosen.tolist()):
        for name in ("boxes", "labels", "difficult"):
            one, other = getattr(some, name)[some.of(place)], getattr(every, name)[every.of(index)]
            assert np.array_equal(one, other)
        assert np.array_equal(some.sizes[place], every.sizes[index])
    easy = every.without_difficult()
    assert len(easy) == len(every)
    assert not easy.difficult.any()
    for index in range(len(every)):
        mine = every.of(index)
        kept = every.boxes[mine][~every.difficult[mine]]
        assert np.array_equal(easy.boxes[easy.of(index)], kept)


def test_targets_in_words() -> None:
    targets = torch.zeros(2, 4, BOX_TARGETS)
    targets[:, 1:, 4] = torch.tensor([[1, 0, PADDING], [PADDING] * 3])
    assert box_texts(targets, ("cat", "dog")) == ["dog, cat", "no object"]
    targets[:, 1:, 4] = torch.tensor([[1, 0, 1], [0, 0, 0]])
    assert box_texts(targets, ("cat", "dog")) == ["2 dog, cat", "3 cat"]


# ---- draws ----


def test_zoom_out_draws_canvases_of_all_sizes_and_places() -> None:
    count = 4000
    sizes = np.random.default_rng(0).integers(20, 500, (count, 2))
    every = boxes_of([[] for _ in range(count)], [(int(w), int(h)) for w, h in sizes])
    transform = BoxTransform(32, every, zoom_out=4.0, zoom_out_probability=0.5)
    views = transform.views(sizes, np.arange(count), 0, 0)
    box = views["box"]
    extent = box[:, 2:] - box[:, :2]
    ratio = extent / sizes
    assert np.allclose(ratio[:, 0], ratio[:, 1])
    zoomed = ratio[:, 0] > 1 + 1e-9
    assert (box[~zoomed] == np.concatenate([0 * sizes, sizes], axis=1)[~zoomed]).all()
    assert 0.45 < zoomed.mean() < 0.55
    ratio = ratio[zoomed, 0]
    assert 1 < ratio.min() < 1.05
    assert 3.95 < ratio.max() <= 4
    assert 2.4 < ratio.mean() < 2.6
    area = (extent.prod(1) / sizes.prod(1))[zoomed]
    assert area.max() <= 16
    place = -box[zoomed, :2] / (extent - sizes)[zoomed]
    assert place.min() >= -1e-9
    assert place.max() <= 1 + 1e-9
    assert (abs(place.mean(0) - 0.5) < 0.03).all()
    assert (place.min(0) < 0.01).all()
    assert (place.max(0) > 0.99).all()
    correlation = np.asarray(np.corrcoef(place.T))
    assert abs(correlation[0, 1]) < 0.06  # each axis by itself
    assert (views["limits"] == np.concatenate([0 * sizes, sizes], axis=1)).all()


CROPS = {
    None: (0, 0), 0.1: (120, 100), 0.3: (100, 60), 0.7: (30, 15), 0.9: (1, 0), -np.inf: (150, 150),
}  # fmt: skip
"""How many of 200 images, 20 of them without objects, are cropped at least: as they are, and on
canvases."""


@pytest.mark.parametrize("least", box_transforms.OVERLAPS)
@pytest.mark.parametrize("zoom_out", [1.0, 4.0])
def test_crops_overlap_as_was_drawn(
    monkeypatch: pytest.MonkeyPatch, least: float | None, zoom_out: float
) -> None:
    monkeypatch.setattr(box_transforms, "OVERLAPS", (least,))
    every = many(200)
    images = BoxImages(Path(), np.array([b"none"] * len(every)), every)
    indices, sizes = np.arange(len(every)), every.sizes.astype(np.int64)
    views = augmented(images, zoom_out=zoom_out).views(sizes, indices, 0, 1)
    canvases = augmented(images, zoom_out=zoom_out, iou_crop=False).views(sizes, indices, 0, 1)
    crops = 0
    for index, view, canvas in zip(indices.tolist(), views, canvases, strict=True):
        if (view["box"] == canvas["box"]).all():
            continue
        crops += 1
        crop, whole = view["box"].tolist(), canvas["box"].tolist()
        x0, y0, x1, y1 = crop
        assert crop == [round(edge) for edge in crop]
        assert 0.5 <= (x1 - x0) / (y1 - y0) <= 2
        for low, high, first, last in ((x0, x1, *whole[::2]), (y0, y1, *whole[1::2])):
            assert first - 0.5 <= low < high <= last + 0.5
            assert 0.3 * (last - first) - 1 <= high - low
        own = every.boxes[every.of(index)].tolist()
        centres = [((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in own]
        assert any(x0 < x < x1 and y0 < y < y1 for x, y in centres)
        assert least is not None
        assert max(iou(crop, box) for box in own) >= least - 1e-6
    assert CROPS[least][zoom_out > 1] <= crops <= (0 if least is None else 180)


def test_overlaps_are_drawn_with_equal_chances(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []

    def noted(canvas: np.ndarray, boxes: np.ndarray, least: float, draws: np.ndarray) -> np.ndarray:
        assert draws.shape == (4 * box_transforms.TRIALS,)
        assert 0 <= draws.min() < draws.max() < 1
        drawn.append(least)
        return canvas

    monkeypatch.setattr(box_transforms, "_overlapping", noted)
    every = boxes_of([[([1.0, 1.0, 5.0, 5.0], 0, False)]] * 3000, [(10, 10)] * 3000)
    images = BoxImages(Path(), np.array([b"none"] * 3000), every)
    augmented(images).views(every.sizes.astype(np.int64), np.arange(3000), 0, 0)
    counts = [drawn.count(least) for least in box_transforms.OVERLAPS if least is not None]
    assert sum(counts) == len(drawn)
    assert all(abs(count - 500) < 90 for count in [*counts, 3000 - len(drawn)])


def test_draws_depend_on_seed_epoch_and_index_only() -> None:
    every = many()
    images = BoxImages(Path(), np.array([b"none"] * len(every)), every)
    transform, sizes = augmented(images), every.sizes.astype(np.int64)
    indices = np.arange(len(every))
    whole = transform.views(sizes, indices, 7, 2)
    order = np.random.default_rng(0).permutation(len(every))
    assert (transform.views(sizes[order], order, 7, 2) == whole[order]).all()
    for index in indices.tolist():
        one = np.array([index])
        assert transform.views(sizes[one], one, 7, 2) == whole[index]
    for seed, epoch in ((8, 2), (7, 3)):
        assert (transform.views(sizes, indices, seed, epoch) != whole).mean() > 0.7
    # Another image's draws, its own boxes and size: nothing else decides.
    mine, other = np.array([4]), np.array([9])
    same = boxes_of([[([5.0, 5.0, 60.0, 70.0], 0, False)]] * 2, [(90, 80)] * 2)
    pair = BoxTransform(32, same, zoom_out=4.0, iou_crop=True)
    size = np.array([[90, 80]])
    first = pair.views(size, mine, 0, 0, own=np.array([0]))
    assert pair.views(size, mine, 0, 0, own=np.array([1])) == first
    assert pair.views(size, other, 0, 0, own=np.array([0])) != first


# ---- colours on the device ----

FACTORS = {"brightness": 0, "contrast": 1, "saturation": 2, "hue": 3, "channels": 4}


def some_pixels() -> Tensor:
    """Greys, pure and dim colours, and others: (8, 4, 5, 3)."""
    random = np.random.default_rng(3)
    pixels = random.integers(0, 256, (8, 4, 5, 3)).astype(np.uint8)
    pixels[:, 0] = [(0, 0, 0), (255, 255, 255), (128, 128, 128), (255, 0, 0), (1, 2, 3)]
    pixels[:, 1] = [(0, 255, 255), (10, 10, 200), (250, 251, 250), (90, 90, 10), (7, 7, 7)]
    return torch.from_numpy(pixels)


def distorted(pixel: list[float], draws: list[float]) -> list[float]:
    """A pixel by the draws of its image, in double precision."""
    happens = [draw < 0.5 for draw in draws[:5]]
    values = [2 * draw - 1 if on else 0.0 for draw, on in zip(draws[5:9], happens, strict=False)]
    early = draws[9] < 0.5

    def bounded(colour: list[float]) -> list[float]:
        return [min(max(value, 0.0), 255.0) for value in colour]

    def contrasted(colour: list[float]) -> list[float]:
        return [value * (1 + values[1] / 2) for value in colour]

    colour = [value + 32 * values[0] for value in pixel]
    colour = bounded(contrasted(colour) if early else colour)
    hue, saturation, value = colorsys.rgb_to_hsv(*(one / 255 for one in colour))
    saturation = min(1.0, saturation * (1 + values[2] / 2))
    turned = colorsys.hsv_to_rgb((hue + values[3] * 18 / 360) % 1, saturation, value)
    colour = [255 * one for one in turned]
    colour = bounded(colour if early else contrasted(colour))
    order = sorted(range(3), key=lambda place: draws[10 + place]) if happens[4] else range(3)
    return [colour[place] for place in order]


def assert_distorted(pixels: Tensor, draws: Tensor, result: Tensor) -> None:
    assert result.dtype == torch.float32
    assert result.min() >= 0
    assert result.max() <= 255
    for image, row, made in zip(pixels.tolist(), draws.double().tolist(), result, strict=True):
        expected = [[distorted(pixel, row) for pixel in line] for line in image]
        assert np.allclose(made.double().numpy(), expected, atol=0.02)


@pytest.mark.parametrize("only", FACTORS)
@pytest.mark.parametrize("early", [False, True])
def test_each_distortion_is_that_of_a_plain_statement(
    monkeypatch: pytest.MonkeyPatch, only: str, early: bool
) -> None:
    draws = torch.rand((8, 13), generator=torch.Generator().manual_seed(4))
    draws[:, :5] = 0.75
    draws[:, FACTORS[only]] = 0.25
    draws[:, 9] = 0.25 if early else 0.75
    draws[0, 5:9], draws[1, 5:9] = 0.0, 1 - 2**-24  # the ends of what is drawn
    made = Photometric(0, 8)
    monkeypatch.setattr(made, "_draws", lambda purpose, count, device: draws[:, :count])
    pixels = some_pixels()
    result = made.jittered(pixels)
    assert_distorted(pixels, draws, result)
    assert not torch.equal(result, pixels.float())


def test_nothing_is_distorted_if_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = torch.rand((8, 13), generator=torch.Generator().manual_seed(4))
    draws[:, :5] = 0.5
    made = Photometric(0, 8)
    monkeypatch.setattr(made, "_draws", lambda purpose, count, device: draws)
    pixels = some_pixels()
    assert torch.allclose(made.jittered(pixels), pixels.float(), atol=0.01)


def test_distortions_together_are_those_of_a_plain_statement() -> None:
    made = Photometric(5, 64).at(2, 3)
    draws = made._draws("photometric", 13, CPU)
    pixels = some_pixels().repeat(8, 1, 1, 1)
    result = made.jittered(pixels)
    assert_distorted(pixels, draws, result)
    assert torch.equal(result, made.at(2, 3).jittered(pixels))
    assert not torch.equal(result, made.at(2, 4).jittered(pixels))
    happens = (draws[:, :5] < 0.5).float().mean(0)
    assert ((happens > 0.25) & (happens < 0.75)).all()
    orders = draws[draws[:, 4] < 0.5, 10:].argsort(1)
    assert len(orders.unique(dim=0)) == 6


@pytest.mark.parametrize("count", [2, 4])
def test_distortions_are_the_same_for_any_number_of_processes(count: int) -> None:
    pixels = some_pixels()
    whole = Photometric(5, 8).at(1, 2).jittered(pixels)
    parts = [
        Photometric(5, 8, rank, count).at(1, 2).jittered(part)
        for rank, part in enumerate(pixels.chunk(count))
    ]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, pixels.float())


def test_what_lies_outside_is_filled_after_the_distortion(painted: BoxImages) -> None:
    pixels, targets = next(loader(painted).epoch(0))
    made = Photometric(5, len(pixels)).at(0, 0)
    images, _ = DeviceBatches([0.5] * 3, [0.25] * 3, CPU, fills=True)(pixels, targets, made)
    zoomed = 0
    for image, (x0, y0, x1, y1) in zip(images, targets[:, 0, :4].tolist(), strict=True):
        inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        centres = torch.arange(SIZE) + 0.5
        across, down = (centres >= x0) & (centres <= x1), (centres >= y0) & (centres <= y1)
        inside[down[:, None] & across] = True
        assert (image[:, ~inside] == 0).all()
        assert (image[:, inside] != 0).any(0).float().mean() > 0.9
        zoomed += not bool(inside.all())
    assert zoomed > 3


# ---- images shifted over black ----

SHIFTED = 32


def shift_transform(**changes: object):
    settings = {"pad_crop": 4, "interpolation": "bilinear", "hflip": 0.5} | changes
    return train_transform(SHIFTED, **settings)  # pyright: ignore[reportArgumentType]


def small_photos(count: int) -> np.ndarray:
    random = np.random.default_rng(0)
    whole = np.asarray(photo())
    places = zip(random.integers(0, 390, count), random.integers(0, 600, count), strict=True)
    # No pixel is black, as what surrounds them is.
    return np.stack([whole[y : y + 32, x : x + 32] for y, x in places]).clip(1)


def shifts_of(image: np.ndarray, made: np.ndarray) -> list[tuple[int, int, bool]]:
    """All shifts and flips of the image, over 4 black pixels around, that are what was made.

    torchvision's RandomCrop with padding=4 takes a part of the padded image; flips come after it.
    """
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    found = []
    for dy, dx in itertools.product(range(-4, 5), repeat=2):
        part = padded[4 + dy : 4 + dy + SHIFTED, 4 + dx : 4 + dx + SHIFTED]
        found += [(dx, dy, False)] if np.array_equal(part, made) else []
        found += [(dx, dy, True)] if np.array_equal(part[:, ::-1], made) else []
    return found


@pytest.mark.parametrize("interpolation", ["bilinear", "random"])
@pytest.mark.parametrize("decoder", ["native", "pillow"])
def test_shifted_images_are_slices_of_the_padded_ones(decoder: str, interpolation: str) -> None:
    if decoder == "native":
        needs_native()
    pixels = small_photos(60)
    transform = shift_transform(interpolation=interpolation)
    batches = train_loader(
        ArrayImages(pixels, np.arange(60)), transform, seed=1, global_batch_size=20,
        decoder=decoder,
    )  # fmt: skip
    seen: dict[tuple[int, int, bool], int] = {}
    for epoch in range(5):
        for made, labels in batches.epoch(epoch):
            for one, label in zip(made.numpy(), labels.tolist(), strict=True):
                (shift,) = shifts_of(pixels[label], one)
                seen[shift] = seen.get(shift, 0) + 1
    batches.close()
    for axis in (0, 1):
        counts = [0] * 9
        for shift, count in seen.items():
            counts[int(shift[axis]) + 4] += count
        assert sum(counts) == 300
        assert min(counts) > 10  # of 33
    assert 110 < sum(count for (_, _, flip), count in seen.items() if flip) < 190


def test_shifted_images_are_the_same_for_both_decoders(photo_folder: Path) -> None:
    """Of files, some of another size than the result."""
    needs_native()
    for number, pixels in enumerate(small_photos(8)):
        path = photo_folder / "train" / "flower" / f"{number}.jpg"
        PIL.Image.fromarray(pixels).save(path, quality=95)
    images = image_folder(str(photo_folder)).train
    made = {}
    for decoder in ("native", "pillow"):
        batches = train_loader(
            images, shift_transform(), seed=1, global_batch_size=len(images), decoder=decoder
        )
        ((pixels, _),) = taken(batches, 0)
        made[decoder] = pixels.numpy().astype(int)
    black = [(pixels == 0).all(3) for pixels in made.values()]
    sides = np.array([images[i][0].size for i in range(len(images))])
    order = epoch_order(len(images), 1, 0).numpy()
    exact = (sides[order] == SHIFTED).all(1)
    off = np.abs(made["native"] - made["pillow"])
    assert exact.sum() == 8
    assert off[exact].max() == 0
    assert off.mean() < 0.5
    assert (black[0] == black[1]).mean() > 0.999


@pytest.mark.parametrize("decoder", ["native", "pillow"])
def test_images_may_be_shifted_out_of_sight(decoder: str) -> None:
    if decoder == "native":
        needs_native()
    images = ArrayImages(np.full((60, 8, 8, 3), 200, np.uint8), np.arange(60))
    transform = train_transform(8, pad_crop=12, interpolation="random")
    batches = train_loader(images, transform, seed=0, global_batch_size=60, decoder=decoder)
    ((pixels, _),) = taken(batches, 0)
    assert pixels.unique().tolist() == [0, 200]
    # An axis has 15 shifts of 25 that leave something to be seen: 9 of 25 images.
    seen = int((pixels != 0).flatten(1).any(1).sum())
    assert 10 < seen < 34


def test_nvjpeg_leaves_no_pixels_to_be_blackened() -> None:
    message = "data.decoder=nvjpeg leaves no pixels on the host for augment.pad_crop: use another"
    images = ArrayImages(small_photos(8), np.arange(8))
    with pytest.raises(InputError, match=message):
        train_loader(images, shift_transform(), seed=0, global_batch_size=4, decoder="nvjpeg")


def test_a_run_with_shifted_images(tmp_path: Path) -> None:
    config = composed(*TINY, "augment.pad_crop=4", "data.global_batch_size=1437", "epochs=1",
                      "optimizer.lr=0.01")  # fmt: skip
    assert config.augment.pad_crop == 4
    result = train(placed(config, tmp_path), Process(CPU))
    assert (result["steps"], result["count"]) == (1, 360)


def test_the_most_that_images_are_shifted_is_checked() -> None:
    for wrong in (-1, 513):
        with pytest.raises(InputError, match=r"augment\.pad_crop"):
            composed(f"augment.pad_crop={wrong}")


# ---- drawings ----


def drawn(
    box: tuple[float, float, float, float], label: int = 3, text: str = "", **more: bool
) -> np.ndarray:
    picture = PIL.Image.new("RGB", (80, 60), (9, 9, 9))
    draw_boxes(picture, np.array([box]), [label], [text], **more)
    return np.asarray(picture)


def is_colour(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    same: np.ndarray = pixels == colour
    return np.asarray(same.all(-1))


def test_a_box_has_an_outline_in_the_colour_of_its_class() -> None:
    pixels, colour = drawn((10, 20, 50, 45)), colour_of(3)
    line = is_colour(pixels, colour)
    assert line[20, 10:51].all()
    assert line[45, 10:51].all()
    assert line[20:46, 10].all()
    assert line[20:46, 50].all()
    assert is_colour(pixels[24:42, 14:47], (9, 9, 9)).all()
    assert is_colour(pixels[:18], (9, 9, 9)).all()
    assert line.sum() + is_colour(pixels, (9, 9, 9)).sum() == 80 * 60
    assert len({colour_of(label) for label in range(90)}) == 90
    assert all(colour_of(label) != TRUTH for label in range(90))


def test_a_known_box_is_dashed() -> None:
    pixels = drawn((10, 20, 58, 45), dashed=True)
    line = is_colour(pixels, TRUTH)
    for row in (20, 45):
        along = np.asarray(line[row - 1 : row + 2, 10:58].any(0))
        assert along[:DASH].all()
        assert not along[DASH + 2 : 2 * DASH - 1].any()
        assert 0.3 < along.mean() < 0.8
    assert not is_colour(pixels, colour_of(3)).any()


def test_a_word_is_written_on_the_colour_of_its_class() -> None:
    plain, written = drawn((30, 30, 70, 50)), drawn((30, 30, 70, 50), text="dog 0.9")
    changed = (plain != written).any(2)
    assert changed[:30].sum() > 100
    assert is_colour(written, colour_of(3))[:29].sum() > 50
    assert (written[:30].astype(int).sum(2) < 20).any()  # black letters


def test_words_can_be_read_on_every_colour() -> None:
    assert {words_on(colour_of(label)) for label in range(90)} == {"black", "white"}
    assert words_on((255, 255, 255)) == words_on((255, 255, 0)) == "black"
    assert words_on((0, 0, 0)) == words_on((64, 64, 255)) == "white"


def test_no_line_crosses_a_word() -> None:
    picture = PIL.Image.new("RGB", (120, 60), (9, 9, 9))
    alone = picture.copy()
    draw_boxes(alone, np.array([(10, 30, 100, 50)]), [3], ["dog 0.91"])
    draw_boxes(picture, np.array([(10, 30, 100, 50), (30, 5, 40, 55)]), [3, 3], ["dog 0.91", ""])
    assert np.array_equal(np.asarray(picture)[18:29, 12:45], np.asarray(alone)[18:29, 12:45])


def test_dashes_are_seen_on_white() -> None:
    picture = PIL.Image.new("RGB", (80, 60), "white")
    draw_boxes(picture, np.array([(10, 20, 58, 45)]), [3], [""], dashed=True)
    assert (np.asarray(picture)[18:24, 10:58].max(2) == 0).mean() > 0.1


OUT_OF_THE_PICTURE = [
    (-500, -500, -400, -400), (500, 400, 600, 500), (-30, -30, 200, 200), (70, 50, 70, 50),
    (50, 40, 20, 10), (-1e6, 5, 1e6, 6), (79.5, 59.5, 81, 61),
]  # fmt: skip


@pytest.mark.parametrize("box", OUT_OF_THE_PICTURE)
@pytest.mark.parametrize("dashed", [False, True])
def test_boxes_out_of_the_picture_are_no_fault(
    box: tuple[float, float, float, float], dashed: bool
) -> None:
    if dashed and max(map(abs, box)) > 1000:
        box = (-1000, 5, 1000, 6)
    assert drawn(box, text="a long word that is wider than the picture", dashed=dashed).any()
