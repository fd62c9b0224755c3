"""VOC: what is read, and what is said of files that are not as they have to be."""

import importlib
import io
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from mobilenext.data.box_problems import image_size, stays_inside
from mobilenext.data.boxes import BoxData
from mobilenext.data.voc import NAMES, voc
from mobilenext.errors import InputError

WIDTH, HEIGHT = 100, 80


@cache
def jpeg(size: tuple[int, int] = (WIDTH, HEIGHT), format: str = "JPEG") -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", size, "gray").save(file, format)
    return file.getvalue()


def item(*edges: object, name: str = "dog", difficult: object = 0) -> str:
    tags = zip(("xmin", "ymin", "xmax", "ymax"), edges, strict=True)
    box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags if value is not None)
    hard = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    # Parts of persons have names and boxes of their own.
    part = "<part><name>head</name><bndbox><xmin>9</xmin></bndbox></part>"
    return f"<object><name>{name}</name>{hard}<bndbox>{box}</bndbox>{part}</object>"


def annotation(
    *items: str, size: tuple[int, int] | None = (WIDTH, HEIGHT), filename: str = "odd.jpg"
) -> str:
    said = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    return f"<annotation><filename>{filename}</filename>{said}{''.join(items)}</annotation>"


GOOD = item(11, 21, 51, 61)


class Tree:
    """A folder in VOC's layout, with two good images: one to train on, one to test on."""

    def __init__(self, root: Path, folder: str = "VOC2007") -> None:
        self.root, self.folder = root, root / folder
        for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (self.folder / name).mkdir(parents=True)
        self.add("good")
        self.add("test", split="test")

    def add(self, name: str, *items: str, split: str = "trainval", **about: object) -> Path:
        self.list(name, split=split)
        (self.folder / "JPEGImages" / f"{name}.jpg").write_bytes(jpeg())
        path = self.folder / "Annotations" / f"{name}.xml"
        path.write_text(annotation(*(items or (GOOD,)), **about))  # type: ignore[arg-type]
        return path

    def list(self, *names: str, split: str = "trainval") -> None:
        with (self.folder / "ImageSets" / "Main" / f"{split}.txt").open("a") as file:
            file.writelines(f"{name}\n" for name in names)

    def read(self, **arguments: object) -> BoxData:
        return voc(self.root, **({"train": ["2007:trainval"]} | arguments))  # type: ignore[arg-type]

    def error(self, **arguments: object) -> str:
        with pytest.raises(InputError) as raised:
            self.read(**arguments)
        return str(raised.value)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def boxes_of(data: BoxData, index: int, split: str = "train") -> list[list[float]]:
    boxes = getattr(data, split).boxes
    return boxes.boxes[boxes.of(index)].tolist()


def test_what_is_read(tree: Tree) -> None:
    tree.add("two", item(1, 1, 100, 80, name="cat"), item(2.5, 3.25, 50, 60, difficult=1))
    tree.add("tests", item(1, 1, 100, 80), item(2, 3, 50, 60, difficult=1), split="test")
    data = tree.read()
    assert data.classes == NAMES
    assert data.protocol == "voc"
    assert data.split_name is None
    assert data.problems == ()
    assert [data.train.relative(i) for i in range(2)] == [
        "VOC2007/JPEGImages/good.jpg",
        "VOC2007/JPEGImages/two.jpg",
    ]
    assert data.train.read(1) == jpeg()
    assert boxes_of(data, 0) == [[10, 20, 50, 60]]  # columns count from 1
    assert boxes_of(data, 1) == [[0, 0, 99, 79]]
    assert data.train.labels.tolist() == [NAMES.index("dog"), NAMES.index("cat")]
    assert data.train.boxes.sizes.tolist() == [[WIDTH, HEIGHT]] * 2
    assert data.val.boxes.difficult.tolist() == [False, False, True]
    assert boxes_of(data, 1, "val")[1] == [1, 2, 49, 59]
    assert data.counts["train"] == {
        "images": 2, "objects": 2, "difficult_objects": 1, "background_images": 0, "bad_boxes": 0,
        "clipped_boxes": 0, "only_difficult": 0, "only_bad": 0, "wrong_size": 0, "crowds": 0,
        "missing": 0,
    }  # fmt: skip
    assert data.counts["val"]["objects"] == 3
    assert data.notes[0] == "train: 1 difficult object left out"
    assert data.notes[1].startswith("train: no objects of 18 classes: aeroplane, bicycle, bird")
    assert (data.train.boxes.boxes.dtype, data.train.labels.dtype) == (np.float32, np.int32)


BAD_BOXES = [
    (item(120, 10, 98, 20), "expected xmin < xmax, got 120, 98"),
    (item(10, 20, 20, 20), "expected ymin < ymax, got 20, 20"),
    (item(90, 1, 90.000001, 9), "expected a box of some width and height, got xmin 90, ymin 1"),
    (item("nan", 10, 98, 20), "expected a number in xmin, got nan"),
    (item(1, 10, 98, "1e999"), "expected a number in ymax, got 1e999"),
    (item(1, 10, "about 9", 20), "expected a number in xmax, got about 9"),
    (item(1, None, 9, 20), "expected a number in ymin, found none"),
    (item(1, 2, 9, 20, difficult="yes"), "expected a number in difficult, got yes"),
    ("<object><name>dog</name></object>", "expected bndbox, found none"),
    (item(201, 10, 250, 20), "expected a box inside of the image of 100 x 80 pixels, got xmin 201"),
    (item(0, 10, 1, 20), "expected a box inside of the image of 100 x 80 pixels, got xmin 0"),
]


@pytest.mark.parametrize(("bad", "message"), BAD_BOXES)
def test_bad_boxes(tree: Tree, bad: str, message: str) -> None:
    tree.add("bad", GOOD, item(1, 1, 9, 9, name="cat"), bad)
    place = "VOC2007/Annotations/bad.xml: object 3 (dog): "
    said = tree.error(on_bad_box="error")
    assert f"found 1 problem:\n  {place}{message}" in said
    assert said.endswith("leave such boxes out (data.on_bad_box=drop, or clip)")
    for policy in ("drop", "clip"):
        data = tree.read(on_bad_box=policy)
        assert boxes_of(data, 1) == [[10, 20, 50, 60], [0, 0, 8, 8]]
        assert data.counts["train"]["bad_boxes"] == 1
        assert data.counts["train"]["clipped_boxes"] == 0
        assert data.counts["train"]["objects"] == 3
        note = "train: 1 box left out: VOC2007/Annotations/bad.xml: object 3 (dog)"
        assert note in data.notes
        [line] = data.problems
        assert line.startswith(place + message)
        assert line.endswith("; left out")


def test_an_object_without_a_class(tree: Tree) -> None:
    tree.add("bad", item(1, 2, 9, 20, name=""), GOOD)
    assert "object 1 (without a name): expected the class in name, found none" in tree.error(
        on_bad_box="error"
    )
    assert tree.read().counts["train"]["bad_boxes"] == 1


@pytest.mark.parametrize(
    ("edges", "policy", "box"),
    [
        ((0, 0, 50, 40), "drop", [0, 0, 49, 39]),  # out by a pixel: files that count from 0
        ((0, 0, 50, 40), "clip", [0, 0, 49, 39]),
        ((10, 10, 102, 82), "drop", [9, 9, 100, 80]),
        ((-1, 10, 50, 40), "drop", None),
        ((-1, 10, 50, 40), "clip", [0, 9, 49, 39]),
        ((10, 10, 102.5, 40), "drop", None),
        ((10, 10, 102.5, 1e30), "clip", [9, 9, 100, 80]),
    ],
)
def test_boxes_that_stick_out(
    tree: Tree, edges: tuple[float, ...], policy: str, box: list[float] | None
) -> None:
    tree.add("bad", GOOD, item(*edges))
    said = tree.error(on_bad_box="error")
    assert "object 2 (dog): expected a box inside of the image of 100 x 80 pixels, got" in said
    data = tree.read(on_bad_box=policy)
    assert boxes_of(data, 1)[1:] == ([] if box is None else [box])
    counts = data.counts["train"]
    assert (counts["bad_boxes"], counts["clipped_boxes"]) == ((1, 0) if box is None else (0, 1))
    assert data.problems[0].endswith("; left out" if box is None else "; cut at the edge")
    if box is not None:
        assert "train: 1 box cut at the edge of the image: VOC2007/A" in "\n".join(data.notes)
    assert (data.train.boxes.boxes[:, 2:] > data.train.boxes.boxes[:, :2]).all()


def test_a_last_pixel_is_inside(tree: Tree) -> None:
    tree.add("edge", item(1, 1, WIDTH + 1, HEIGHT + 1))
    assert boxes_of(tree.read(on_bad_box="error"), 1) == [[0, 0, WIDTH, HEIGHT]]


def test_unknown_classes(tree: Tree) -> None:
    tree.add("bad", item(1, 1, 9, 9, name="cta"), item(1, 1, 9, 9, name="dgo"))
    tree.add("worse", item(1, 1, 9, 9, name="cta"), split="test")
    for policy in ("error", "drop", "clip"):
        said = tree.error(on_bad_box=policy, on_bad_image="skip")
        assert "unknown classes: expected aeroplane, bicycle" in said
        assert "got cta (2, first VOC2007/Annotations/bad.xml: object 1 (cta)), dgo (1, " in said
        assert "data.source.classes=[...]" in said
    data = tree.read(classes=["dgo", "cta", "dog"])
    assert data.classes == ("dgo", "cta", "dog")
    assert data.train.labels.tolist() == [2, 1, 0]
    assert tree.read(classes="from_data").classes == ("cta", "dgo", "dog")
    tree.add("val", item(1, 1, 9, 9, name="only here"), split="test")
    said = tree.error(classes="from_data")
    assert "expected cta, dgo, dog; got only here (1, first" in said


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("all", "data.source.classes=all: expected a list of names, or from_data"),
        ([], "data.source.classes: expected the names of classes, got none"),
        (["dog", "dog"], "expected each class once, got several times: dog"),
        (["a\nb"], "expected class names in UTF-8, a line each"),
    ],
)
def test_odd_lists_of_classes(tree: Tree, classes: object, message: str) -> None:
    assert message in tree.error(classes=classes)


def _no_xml(tree: Tree) -> str:
    (tree.folder / "Annotations" / "bad.xml").unlink()
    return "VOC2007/Annotations/bad.xml: expected an annotation for the listed id, found none"


def _no_image(tree: Tree) -> str:
    (tree.folder / "JPEGImages" / "bad.jpg").unlink()
    return (
        "VOC2007/Annotations/bad.xml: expected its image VOC2007/JPEGImages/bad.jpg or odd.jpg, "
        "found none"
    )


def _write(text: str | bytes, message: str) -> Callable[[Tree], str]:
    def write(tree: Tree) -> str:
        data = text if isinstance(text, bytes) else text.encode()
        (tree.folder / "Annotations" / "bad.xml").write_bytes(data)
        return f"VOC2007/Annotations/bad.xml: {message}"

    return write


def _write_image(data: bytes, message: str) -> Callable[[Tree], str]:
    def write(tree: Tree) -> str:
        (tree.folder / "JPEGImages" / "bad.jpg").write_bytes(data)
        return f"VOC2007/JPEGImages/bad.jpg: {message}"

    return write


def _pipe(folder: str, name: str) -> Callable[[Tree], str]:
    def replace(tree: Tree) -> str:
        path = tree.folder / folder / name
        path.unlink()
        os.mkfifo(path)
        return f"VOC2007/{folder}/{name}: expected a regular file, got a named pipe"

    return replace


def _leads_out(filename: str) -> Callable[[Tree], str]:
    def replace(tree: Tree) -> str:
        (tree.folder / "JPEGImages" / "bad.jpg").unlink()
        (tree.root / "secret.jpg").write_bytes(jpeg())
        filled = filename.format(root=tree.root)
        (tree.folder / "Annotations" / "bad.xml").write_text(annotation(GOOD, filename=filled))
        return (
            f"VOC2007/Annotations/bad.xml: expected a filename in VOC2007/JPEGImages, got {filled}"
        )

    return replace


LAUGHS = '<!DOCTYPE a [<!ENTITY b "lol"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'
REFUSED = "expected an annotation without DOCTYPE and entities, got one"
BAD_IMAGES = {
    "no xml": _no_xml,
    "no image": _no_image,
    "broken xml": _write("<annotation><object>", "expected an annotation, got broken XML (no el"),
    "empty xml": _write("", "expected an annotation, got broken XML"),
    "entities": _write(LAUGHS, REFUSED),
    "entities in UTF-16": _write(LAUGHS.encode("utf-16"), REFUSED),
    "encoding": _write('<?xml version="1.0" encoding="x"?><annotation/>', "expected an annotation"),
    "other root": _write("<html/>", "expected <annotation>, got <html>"),
    "huge xml": _write(b" " * 4_200_000, "expected at most 4,194,304 bytes, got 4,200,000"),
    "empty image": _write_image(b"", "expected an image file, but it is an empty file"),
    "half a header": _write_image(jpeg()[:50], "expected an image file, could not decode it"),
    "a web page": _write_image(b"<html>", "expected an image file, but it is a web page"),
    "parent folder": _leads_out("../../secret.jpg"),
    "windows": _leads_out("..\\..\\secret.jpg"),
    "absolute": _leads_out("{root}/secret.jpg"),
}
if hasattr(os, "mkfifo"):
    BAD_IMAGES |= {
        "xml is a pipe": _pipe("Annotations", "bad.xml"),
        "image is a pipe": _pipe("JPEGImages", "bad.jpg"),
    }


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_images_that_can_not_be_used(tree: Tree, kind: str) -> None:
    tree.add("bad", item(1, 1, 9, 9, name="cat"))
    message = BAD_IMAGES[kind](tree)
    said = tree.error()
    assert f"found 1 problem:\n  {message}" in said
    assert said.endswith("leave such images out (data.on_bad_image=skip)")
    data = tree.read(on_bad_image="skip", classes="from_data")
    assert data.classes == ("dog",)
    assert len(data.train) == 1
    assert data.counts["train"]["missing"] == 1
    assert data.counts["train"]["objects"] == 1
    [line] = data.problems
    assert line.startswith(message)
    note = "train: 1 image left out, as files are missing or can't be read: VOC2007/"
    assert any(text.startswith(note) for text in data.notes)


def test_too_many_pixels(tree: Tree) -> None:
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\xff\xff\xff\xff"
    tree.add("bad")
    (tree.folder / "JPEGImages" / "bad.jpg").write_bytes(data)
    assert "at most 178,956,970 pixels, got 65535 x 65535" in tree.error()
    data[at : at + 4] = (10_000).to_bytes(2, "big") * 2  # Pillow warns from 89 million on
    (tree.folder / "JPEGImages" / "bad.jpg").write_bytes(data)
    assert tree.read().train.boxes.sizes[1].tolist() == [10_000, 10_000]


def test_all_problems_are_in_one_error(tree: Tree) -> None:
    for number in range(4):
        tree.list(f"gone{number}")
        tree.add(f"bad{number}", item(9, 1, 1, 9), split="test")
    tree.add("odd", item(1, 1, 9, 9, name="cta"), item(9, 9, 8, 9), split="test")
    tree.list("good")
    said = tree.error(on_bad_box="error")
    assert "found 11 problems:\n  " in said
    assert len(re.findall("^  VOC2007", said, re.MULTILINE)) == 9
    assert "\n  and 1 more\nfix the files, or leave such images out" in said
    assert "unknown classes: " in said
    assert "VOC2007/ImageSets/Main/trainval.txt: expected each image once, got 1 several" in said
    assert "found 2 problems:" in tree.error(on_bad_image="skip")


def test_the_file_decides_on_its_size(tree: Tree) -> None:
    tree.add("bad", item(1, 1, 100, 80), size=(80, 100))
    tree.add("unsaid", size=None)
    data = tree.read(on_bad_box="error")
    assert data.train.boxes.sizes[1].tolist() == [WIDTH, HEIGHT]
    assert data.counts["train"]["wrong_size"] == 1
    line = "VOC2007/JPEGImages/bad.jpg: 100 x 80 pixels, its annotation says 80 x 100"
    assert data.problems == (line,)
    assert data.notes[0] == (
        "train: 1 image of another size than the annotations say (1 are turned: EXIF orientation "
        "is not applied), the file decides: VOC2007/JPEGImages/bad.jpg"
    )


def test_images_without_objects(tree: Tree) -> None:
    path = tree.add("empty")
    path.write_text(annotation())
    data = tree.read()
    assert len(data.train) == 2
    assert boxes_of(data, 1) == []
    assert data.counts["train"]["background_images"] == 1
    assert (
        "train: 1 image without objects, kept as background: VOC2007/JPEGImages/empty.jpg"
        in data.notes
    )
    (tree.folder / "Annotations" / "good.xml").write_text(annotation())
    assert (
        "expected images with objects in the train split, found none (train: 2 im" in tree.error()
    )


def test_images_with_difficult_objects_only(tree: Tree) -> None:
    for split in ("trainval", "test"):
        tree.add(f"{split}_hard", item(1, 1, 9, 9, difficult=1), split=split)
        tree.add(f"{split}_unsaid", item(1, 1, 9, 9, difficult=None), split=split)
        tree.add(f"{split}_bad", item(9, 1, 1, 9), split=split)
    data = tree.read()
    assert len(data.train) == 2
    assert data.train.relative(1).endswith("trainval_unsaid.jpg")
    assert (data.counts["train"]["only_difficult"], data.counts["train"]["only_bad"]) == (1, 1)
    assert "train: 1 image left out, as all objects are difficult: VOC2007/J" in str(data.notes)
    assert "train: 1 image left out, as all objects are bad boxes: VOC2007/J" in str(data.notes)
    assert len(data.val) == 4
    assert data.val.boxes.difficult.tolist() == [False, True, False]
    assert data.counts["val"]["difficult_objects"] == 1
    assert (data.counts["val"]["only_difficult"], data.counts["val"]["only_bad"]) == (0, 0)


def test_images_twice(tree: Tree) -> None:
    tree.list("good", split="test")
    data = tree.read()
    assert data.notes[-1] == (
        "1 image in the training and in the validation split: VOC2007/JPEGImages/good.jpg"
    )
    tree.list("good")
    said = tree.error(on_bad_image="skip")
    assert "trainval.txt: expected each image once, got 1 several times: VOC2007/good" in said
    tree.list("good", split="train")
    said = tree.error(train=["2007:train", "2007:test"])
    assert "train.txt and VOC2007/ImageSets/Main/test.txt: expected each image once" in said


def test_where_images_are(tree: Tree) -> None:
    images = tree.folder / "JPEGImages"
    for name, filename in (("upper", "good.jpg"), ("png", "good.jpg"), ("named", "other.bmp"),
                           ("below", "sub/x.jpg")):  # fmt: skip
        tree.add(name, filename=filename)
    (images / "upper.jpg").rename(images / "upper.JPG")
    (images / "png.jpg").unlink()
    (images / "png.png").write_bytes(jpeg(format="PNG"))
    (images / "named.jpg").unlink()
    (images / "other.bmp").write_bytes(jpeg(format="BMP"))
    (images / "sub").mkdir()
    (images / "below.jpg").rename(images / "sub" / "x.jpg")
    data = tree.read()
    names = [data.train.relative(i).removeprefix("VOC2007/JPEGImages/") for i in range(5)]
    assert names == ["good.jpg", "upper.JPG", "png.png", "other.bmp", "sub/x.jpg"]
    assert data.train.boxes.sizes.tolist() == [[WIDTH, HEIGHT]] * 5


def test_lists_of_a_class(tree: Tree) -> None:
    lists = tree.folder / "ImageSets" / "Main"
    (lists / "dog_trainval.txt").write_text("good -1\ntest  1\n\n")
    assert len(tree.read(train="2007:dog_trainval").train) == 2
    (lists / "odd.txt").write_text("good\n../../x\n")
    assert "expected ids, which are names of files without folder and ending, got ../../x" in (
        tree.error(train=["2007:odd"])
    )
    (lists / "latin.txt").write_bytes(b"\xe4")
    assert "expected text in UTF-8" in tree.error(train=["2007:latin"])
    said = tree.error(train=["2007:trainvla"])
    assert "there are dog_trainval, latin, odd, test, trainval" in said
    (lists / "none.txt").write_text("\n")
    assert "found none (train: no objects of 20 classes" in tree.error(train=["2007:none"])
    assert "objects in the val split, found none (val: no objects" in tree.error(val=["2007:none"])


@pytest.mark.parametrize("text", ["2007:", ":trainval", "../x:trainval", "2007:../x", ""])
def test_odd_sets(tree: Tree, text: str) -> None:
    said = tree.error(train=[text])
    assert f"data.source.train: expected YEAR:SPLIT, for instance 2007:trainval, got {text}" in said
    assert "data.source.val: expected at least one YEAR:SPLIT" in tree.error(val=[])


def test_roots(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "deep" / "VOCdevkit")
    Tree(tmp_path / "deep" / "VOCdevkit", "mine")
    for root in (tree.root, tree.root.parent, tree.folder):
        data = voc(root, ["VOC2007:trainval"], ["2007:test"])
        assert data.train.path(0) == tree.folder / "JPEGImages" / "good.jpg"
    assert voc(tree.root, ["mine:trainval"]).train.relative(0) == "mine/JPEGImages/good.jpg"
    data = voc(tree.root / "mine", ["trainval"], ["test"])
    assert data.train.relative(0) == "JPEGImages/good.jpg"
    with pytest.raises(InputError, match=r"no VOC2007; VOC2007 is in \S*VOCdevkit; fix the path"):
        voc(tmp_path, ["2007:trainval"])
    with pytest.raises(InputError, match="VOC2007/Annotations, VOC2012/Annotations, found no VOC2"):
        voc(tree.root)
    with pytest.raises(InputError, match=r"data\.root is not set"):
        voc(None)
    (tree.folder / "JPEGImages").rename(tree.folder / "images")
    with pytest.raises(InputError, match="JPEGImages: expected a folder with images"):
        voc(tree.root, ["2007:trainval"])


@pytest.mark.parametrize("key", ["on_bad_box", "on_bad_image"])
def test_odd_policies(tree: Tree, key: str) -> None:
    assert f"data.{key}=mend: expected one of " in tree.error(**{key: "mend"})


def test_names_of_splits(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    Tree(tree.root, "VOC2012")
    names = {
        "VOC07+12": ({"VOC2007:trainval", "VOC2012:trainval"}, 3, {"VOC2007:test"}, 1),
        "VOC07": ({"VOC2007:trainval"}, 2, {"VOC2007:test"}, 1),
    }
    module = importlib.import_module("mobilenext.data.voc")  # the package has a function voc
    monkeypatch.setattr(module, "SPLIT_NAMES", names)
    tree.add("hard", item(1, 1, 9, 9, difficult=1))  # it is left out, as everybody does
    assert voc(tree.root).split_name == "VOC07+12"
    assert tree.read().split_name == "VOC07"
    assert tree.read(val=["2007:trainval"]).split_name is None
    assert voc(tree.root, ["2012:trainval"]).split_name is None
    (tree.folder / "JPEGImages" / "hard.jpg").unlink()
    assert voc(tree.root, on_bad_image="skip").split_name is None


def test_sizes_are_those_of_pillow(tmp_path: Path) -> None:
    for number, (form, extra) in enumerate(
        [("JPEG", {"progressive": True}), ("JPEG", {"exif": b"Exif\0\0" + bytes(20_000)}),
         ("JPEG", {"comment": b"x" * 300}), ("PNG", {}), ("WEBP", {}), ("GIF", {})]
    ):  # fmt: skip
        for mode in ("RGB", "L"):
            path = tmp_path / f"{number}{mode}"
            PIL.Image.new(mode, (number + 3, 40 - number)).save(path, form, **extra)
            assert image_size(tmp_path, path.name) == (number + 3, 40 - number)
    PIL.Image.new("CMYK", (7, 9)).save(tmp_path / "cmyk", "JPEG")
    assert image_size(tmp_path, "cmyk") == (7, 9)
    with pytest.raises(InputError, match="gone: expected an image file, found none"):
        image_size(tmp_path, "gone")


def test_paths_that_stay_inside() -> None:
    assert all(map(stays_inside, ("a.jpg", "sub/a.jpg", "a..b.jpg", "\udcff.jpg")))
    bad = ("/a", "\\a", "C:a", "../a", "a/../b", "a\\..\\b", "a\0b", "\ud800", "", "x" * 1001)
    assert not any(map(stays_inside, bad))


def test_mini(development_data: Path) -> None:
    """The counts of another way to read the files."""
    root = development_data / "voc_mini"
    if not root.is_dir():
        pytest.skip(f"no {root}; set MOBILENEXT_DATA")
    folder = root / "VOC2007"
    data = voc(root, ["2007:trainval"], ["2007:test"], on_bad_box="error")
    for split, images, name in (("trainval", data.train, "train"), ("test", data.val, "val")):
        ids = (folder / f"ImageSets/Main/{split}.txt").read_text().split()
        texts = [(folder / f"Annotations/{i}.xml").read_text() for i in ids]
        texts = [re.sub("<part>.*?</part>", "", text, flags=re.DOTALL) for text in texts]
        easy, hard = (
            [len(re.findall(f"<difficult>{flag}</difficult>", text)) for text in texts]
            for flag in (0, 1)
        )
        expected = np.array(easy) + (np.array(hard) if name == "val" else 0)
        assert np.diff(images.boxes.starts).tolist() == expected[expected > 0].tolist()
        assert data.counts[name]["difficult_objects"] == sum(hard)
        objects = [part for text in texts for part in text.split("<object>")[1:]]
        kept = [part for part in objects if name == "val" or "<difficult>1" not in part]
        for column, tag in enumerate(("xmin", "ymin", "xmax", "ymax")):
            values = [float(re.findall(f"<{tag}>(.*?)<", part)[0]) - 1 for part in kept]
            assert images.boxes.boxes[:, column].tolist() == values
        for index in range(len(images)):
            with PIL.Image.open(images.path(index)) as image:
                assert images.boxes.sizes[index].tolist() == list(image.size)
    assert (len(data.train), len(data.train.labels)) == (240, 703)
    assert (len(data.val), len(data.val.labels)) == (120, 369)
