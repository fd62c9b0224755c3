"""COCO: what is read, and what is said of files that are not as they have to be."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from mobilenext.data.boxes import BoxData
from mobilenext.data.coco import coco
from mobilenext.errors import InputError

WIDTH, HEIGHT = 100, 80
PLACE = "annotations/instances_train2017.json"
CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 7, "name": "x"}]


def item(image: object, *box: object, category: object = 1, **more: object) -> dict[str, Any]:
    return {"image_id": image, "bbox": list(box), "category_id": category, **more}


class Tree:
    """A folder in COCO's layout, with an image to train on and one to evaluate on."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "annotations").mkdir(parents=True)
        self.contents: dict[str, Any] = {}
        for number, split in enumerate(("train2017", "val2017")):
            (root / split).mkdir()
            self.contents[split] = {"images": [], "annotations": [], "categories": CATEGORIES}
            self.add(f"good{number}.jpg", 10, item(10, 10, 20, 40, 30), split=split)

    def add(
        self, name: str, number: int, *items: dict[str, Any], split: str = "train2017"
    ) -> dict[str, Any]:
        image = {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT}
        content = self.contents[split]
        content["images"].append(image)
        for one in items:
            content["annotations"].append({"id": 100 + len(content["annotations"]), **one})
        PIL.Image.new("RGB", (WIDTH, HEIGHT)).save(self.root / split / Path(name).name)
        return image

    def read(self, **arguments: Any) -> BoxData:
        for split, content in self.contents.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (self.root / "annotations" / f"instances_{split}.json").write_text(text)
        return coco(self.root, **arguments)

    def error(self, **arguments: Any) -> str:
        with pytest.raises(InputError) as raised:
            self.read(**arguments)
        return str(raised.value)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def boxes_of(data: BoxData, index: int) -> list[list[float]]:
    return data.train.boxes.boxes[data.train.boxes.of(index)].tolist()


def test_what_is_read(tree: Tree) -> None:
    tree.add("two.jpg", 3, item(3, 0, 0, 100, 80, category=90, segmentation=[[1, 2]], area=9.5))
    tree.contents["train2017"]["annotations"] += [
        item(10, 1, 2, 3.5, 4, category=7, iscrowd=0),
        item(3, 5, 5, 5, 5, iscrowd=0),
    ]
    data = tree.read(on_bad_box="error")
    assert data.classes == ("person", "x", "toothbrush")  # in the order of the ids, without holes
    assert (data.protocol, data.split_name, data.problems) == ("coco", None, ())
    assert [data.train.relative(i) for i in range(2)] == [
        "train2017/good0.jpg",
        "train2017/two.jpg",
    ]
    assert boxes_of(data, 0) == [[10, 20, 50, 50], [1, 2, 4.5, 6]]
    assert boxes_of(data, 1) == [[0, 0, 100, 80], [5, 5, 10, 10]]
    assert data.train.labels.tolist() == [0, 1, 2, 0]
    assert data.train.boxes.sizes.tolist() == [[WIDTH, HEIGHT]] * 2
    assert data.counts["train"] == {
        "images": 2, "objects": 4, "difficult_objects": 0, "background_images": 0, "bad_boxes": 0,
        "clipped_boxes": 0, "only_difficult": 0, "only_bad": 0, "wrong_size": 0, "crowds": 0,
        "missing": 0,
    }  # fmt: skip
    assert data.notes == ("val: no objects of 2 classes: x, toothbrush",)


BAD = [
    (item(3, 10, 10, 0, 20), "expected a width and a height above 0 in bbox, got 0, 20"),
    (item(3, 10, 10, 5, -2.5), "expected a width and a height above 0 in bbox, got 5, -2.5"),
    (item(3, 10, 10, 5, 5, area=0), "expected an area above 0, got 0"),
    (item(3, 10, 10, 5, 5, area="big"), "expected a number in area, got 'big'"),
    (item(3, 10, 10, 5), "expected four numbers in bbox, got [10, 10, 5]"),
    (item(3, 10, 10, 5, "5"), "expected four numbers in bbox, got [10, 10, 5, '5']"),
    (item(3, 10, 10, 5, None), "expected four numbers in bbox, got [10, 10, 5, None]"),
    (item(3, 10, 10, float("nan"), 5), "expected four numbers in bbox, got [10, 10, nan, 5]"),
    (item(3, float("inf"), 10, 5, 5), "expected four numbers in bbox, got [inf, 10, 5, 5]"),
    (item(3, 10**400, 10, 5, 5), "expected four numbers in bbox, got [1000"),
    ({"image_id": 3, "category_id": 1}, "expected bbox, found none"),
    ({"image_id": 3, "category_id": 1, "bbox": {"x": 1}}, "expected four numbers in bbox, got {'x"),
    (item(3, 100, 10, 5, 5), "expected a box inside of the image of 100 x 80 pixels, got x 100"),
]


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_bad_boxes(tree: Tree, bad: dict[str, Any], message: str) -> None:
    tree.add("bad.jpg", 3, bad, item(3, 1, 1, 9, 9, area=2))
    place = f"{PLACE}: annotation 101 (person): "
    said = tree.error(on_bad_box="error")
    assert f"found 1 problem:\n  {place}{message}" in said
    for policy in ("drop", "clip"):
        data = tree.read(on_bad_box=policy)
        assert boxes_of(data, 1) == [[1, 1, 10, 10]]
        assert data.counts["train"]["bad_boxes"] == 1
        assert f"train: 1 box left out: {place[:-2]}" in data.notes
        [line] = data.problems
        assert line.startswith(place + message)


@pytest.mark.parametrize(
    ("box", "policy", "expected"),
    [
        ((-0.5, 10, 100.5, 20), "drop", [0, 10, 100, 30]),
        ((-0.5, 10, 100.5, 20), "clip", [0, 10, 100, 30]),
        ((10, 70, 20, 30), "drop", None),
        ((10, 70, 20, 30), "clip", [10, 70, 30, 80]),
    ],
)
def test_boxes_that_stick_out(
    tree: Tree, box: tuple[float, ...], policy: str, expected: list[float] | None
) -> None:
    tree.add("bad.jpg", 3, item(3, *box), item(3, 1, 1, 9, 9))
    assert f"100 x 80 pixels, got x {box[0]:g}, y {box[1]:g}, width" in tree.error(
        on_bad_box="error"
    )
    data = tree.read(on_bad_box=policy)
    assert boxes_of(data, 1)[:-1] == ([] if expected is None else [expected])
    counts = data.counts["train"]
    assert (counts["bad_boxes"], counts["clipped_boxes"]) == ((0, 1) if expected else (1, 0))


def test_sums_are_rounded(tree: Tree) -> None:
    """0.1 + 99.9 may be a little more than 100 in 64 bits; what is kept has 32."""
    tree.add("edge.jpg", 3, item(3, 0.7, 0.1, 99.3 + 1e-14, 79.9))
    assert tree.read(on_bad_box="error").counts["train"]["clipped_boxes"] == 0


def test_crowds(tree: Tree) -> None:
    for split in ("train2017", "val2017"):
        tree.add("both.jpg", 3, item(3, 1, 1, 9, 9, iscrowd=1), item(3, 2, 2, 9, 9), split=split)
        tree.add("crowd.jpg", 4, item(4, 1, 1, 9, 9, iscrowd=True), split=split)
    data = tree.read()
    assert len(data.train) == 2
    assert data.train.boxes.difficult.tolist() == [False, False]
    assert (data.counts["train"]["crowds"], data.counts["train"]["only_difficult"]) == (2, 1)
    assert "train: 2 crowds left out" in data.notes
    assert (
        "train: 1 image left out, as all objects are difficult: train2017/crowd.jpg" in data.notes
    )
    assert len(data.val) == 3
    assert data.val.boxes.difficult.tolist() == [False, True, False, True]
    assert (data.counts["val"]["crowds"], data.counts["val"]["only_difficult"]) == (2, 0)
    assert data.counts["val"]["difficult_objects"] == 0


def test_annotations_of_nothing(tree: Tree) -> None:
    tree.contents["train2017"]["annotations"] += [
        item(99, 1, 1, 9, 9, id=5), item(99, 1, 1, 9, 9, id=6), item(10, 1, 1, 9, 9, category=44),
    ]  # fmt: skip
    said = tree.error()
    assert "found 2 problems:" in said
    assert (
        f"{PLACE}: annotations[1] (id 5): expected the id of an image in image_id, got 99, and 1 "
        "more of it"
    ) in said
    assert "annotations[3] (id None): expected the id of a category in category_id, got 44" in said


def test_classes(tree: Tree) -> None:
    val = tree.contents["val2017"]
    val["categories"] = [{"id": 5, "name": "person"}, {"id": 1, "name": "new"}]
    val["annotations"][0]["category_id"] = 5
    data = tree.read()
    assert data.val.labels.tolist() == [data.classes.index("person")]
    assert tree.read(classes=["x", "person"]).train.labels.tolist() == [1]
    assert tree.read(classes="from_data").classes == ("person",)
    said = tree.error(classes=["x"])
    assert "unknown classes: expected x; got person (2, first annotations/instances_tr" in said
    val["annotations"][0]["category_id"] = 1
    assert "unknown classes: expected person, x, toothbrush; got new (1, first" in tree.error()


def _missing(tree: Tree, image: dict[str, Any]) -> str:
    (tree.root / "train2017" / "bad.jpg").unlink()
    return "train2017/bad.jpg: expected an image file, found none"


def _damaged(tree: Tree, image: dict[str, Any]) -> str:
    (tree.root / "train2017" / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    return "train2017/bad.jpg: expected an image file, could not decode it"


def _parent(tree: Tree, image: dict[str, Any]) -> str:
    image["file_name"] = "../val2017/good1.jpg"
    return f"{PLACE}: images[1]: expected a file_name in train2017, got ../val2017/good1.jpg"


def _absolute(tree: Tree, image: dict[str, Any]) -> str:
    image["file_name"] = str(tree.root / "val2017" / "good1.jpg")
    return f"{PLACE}: images[1]: expected a file_name in train2017, got /"


def _surrogate(tree: Tree, image: dict[str, Any]) -> str:
    image["file_name"] = "\ud800\0.jpg"
    return rf"{PLACE}: images[1]: expected a file_name in train2017, got \ud800\x00.jpg"


@pytest.mark.parametrize("spoil", [_missing, _damaged, _parent, _absolute, _surrogate])
def test_images_that_can_not_be_used(
    tree: Tree, spoil: Callable[[Tree, dict[str, Any]], str]
) -> None:
    image = tree.add("bad.jpg", 3, item(3, 1, 1, 9, 9, category=7))
    message = spoil(tree, image)
    assert f"found 1 problem:\n  {message}" in tree.error()
    data = tree.read(on_bad_image="skip", classes="from_data")
    assert data.classes == ("person",)
    assert (len(data.train), data.counts["train"]["missing"]) == (1, 1)
    assert data.problems[0].startswith(message)
    assert "train: 1 image left out, as files are missing or can't be read" in data.notes[0]


def test_both_splits_are_in_one_error(tree: Tree) -> None:
    tree.add("bad.jpg", 3, item(3, 1, 1, 0, 9))
    tree.add("gone.jpg", 4, split="val2017")
    (tree.root / "val2017" / "gone.jpg").unlink()
    said = tree.error(on_bad_box="error")
    assert "found 2 problems:\n  val2017/gone.jpg: " in said
    assert f"\n  {PLACE}: annotation 101 (person): expected a width" in said


def test_images_twice(tree: Tree) -> None:
    data = tree.read(val="train2017")
    assert data.notes[-1].startswith("1 image in the training and in the validation split: train2")
    tree.add("good0.jpg", 3)
    assert f"{PLACE}: expected each image once, got 1 several times: good0.jpg" in tree.error()
    tree.contents["train2017"]["images"][1]["id"] = 10
    assert f"{PLACE}: expected each id of an image once, got several times: 10" in tree.error()


def test_sizes_and_backgrounds(tree: Tree) -> None:
    image = tree.add("odd.jpg", 3)
    image["width"], image["height"] = 50, 40
    del tree.add("unsaid.jpg", 4, item(4, 1, 1, 9, 9))["width"]
    data = tree.read()
    assert data.train.boxes.sizes.tolist() == [[WIDTH, HEIGHT]] * 3
    assert data.counts["train"]["wrong_size"] == 2
    assert data.counts["train"]["background_images"] == 1
    assert data.problems[0] == ("train2017/odd.jpg: 100 x 80 pixels, its annotation says 50 x 40")
    tree.contents["train2017"]["annotations"] = []
    assert "expected images with objects in the train split, found none" in tree.error()


def _set(key: str, value: object, kind: str = "annotations") -> Callable[[dict[str, Any]], None]:
    return lambda content: content[kind][0].update({key: value})


ODD_ENTRIES = [
    (_set("image_id", "10"), "annotations[0]: expected an integer in image_id, got '10'"),
    (_set("image_id", None), "annotations[0]: expected an integer in image_id, found none"),
    (_set("image_id", 2.5), "annotations[0]: expected an integer in image_id, got 2.5"),
    (_set("image_id", 10**30), "annotations[0]: expected an integer in image_id, got 1000000"),
    (_set("category_id", [1]), "annotations[0]: expected an integer in category_id, got [1]"),
    (_set("iscrowd", "no"), "annotations[0]: expected an integer in iscrowd, got 'no'"),
    (_set("id", "a", "images"), "images[0]: expected an integer in id, got 'a'"),
    (_set("file_name", 5, "images"), "images[0]: expected a text in file_name, got 5"),
    (_set("file_name", "", "images"), "images[0]: expected a text in file_name, got ''"),
    (_set("width", float("nan"), "images"), "images[0]: expected an integer in width, got nan"),
    (_set("name", None, "categories"), "categories[0]: expected a text in name, found none"),
    (lambda content: content.pop("annotations"), "expected a list of annotations, found none"),
    (lambda content: content.update(images={}), "expected a list of images, got {}"),
    (lambda content: content["images"].append(3), "images[1]: expected an object, got 3"),
    (lambda content: content.update(categories=CATEGORIES * 2), "expected each id of a category o"),
    (lambda content: content.update(categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]),
     "expected each name of a category once, got several times: a"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), ODD_ENTRIES)
def test_odd_entries(tree: Tree, spoil: Callable[[dict[str, Any]], None], message: str) -> None:
    content = json.loads(json.dumps(tree.contents["train2017"]))
    spoil(content)
    tree.contents["train2017"] = content
    assert f"{PLACE}: {message}" in tree.error(on_bad_box="drop", on_bad_image="skip")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected JSON, but it is an empty file"),
        ('{"images": ', "expected JSON, got none (Expecting value"),
        ("<html>", "expected JSON, but it is a web page"),
        ("[" * 100_000, "expected JSON, got none (maximum recursion"),
        ("[1]", "expected an object with images, annotations, categories, got a list"),
        ("1" * 5000, "expected JSON, got none (Exceeds the limit"),
        ("\ud800", "expected JSON, got none ("),
    ],
)
def test_no_json(tree: Tree, text: str, message: str) -> None:
    tree.read()
    path = tree.root / PLACE
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError) as raised:
        coco(tree.root)
    assert f"{PLACE}: {message}" in str(raised.value)


def test_whole_floats_are_integers(tree: Tree) -> None:
    content = tree.contents["train2017"]
    content["images"][0] |= {"id": 10.0, "width": 100.0}
    content["annotations"][0] |= {"image_id": 10.0, "category_id": 1.0, "area": None}
    data = tree.read(on_bad_box="error")
    assert boxes_of(data, 0) == [[10, 20, 50, 50]]
    assert data.counts["train"]["wrong_size"] == 0


def test_roots(tree: Tree) -> None:
    tree.read()
    (tree.root / "images").mkdir()
    (tree.root / "val2017").rename(tree.root / "images" / "val2017")
    assert coco(tree.root).val.relative(0) == "images/val2017/good1.jpg"
    with pytest.raises(InputError, match=r"expected annotations/instances_train2017\.json and im"):
        coco(tree.root.parent, on_bad_image="skip")
    with pytest.raises(InputError, match=r"found no val/ \(or images/val/\); fix the path, or"):
        coco(tree.root, val="val")
    with pytest.raises(InputError, match="found no"):
        coco(tree.root, train="../train2017")
    (tree.root / "up").mkdir()
    (tree.root / "annotations").rename(tree.root / "up" / "annotations")
    with pytest.raises(InputError, match=r"data\.root=\S+ has it"):
        coco(tree.root)
    with pytest.raises(InputError, match=r"data\.root is not set"):
        coco(None)


def test_names_of_splits(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("mobilenext.data.coco")  # the package has a function coco
    monkeypatch.setattr(module, "SPLIT_NAMES", {"COCO2017": ("train2017", 2, "val2017", 1)})
    assert tree.read().split_name is None
    tree.add("two.jpg", 3, item(3, 1, 1, 9, 9, iscrowd=1))
    assert tree.read().split_name == "COCO2017"
    assert tree.read(train="val2017", val="train2017").split_name is None
    (tree.root / "train2017" / "two.jpg").unlink()
    assert tree.read(on_bad_image="skip").split_name is None


def test_order_of_annotations_is_free(tree: Tree) -> None:
    """Boxes lie by image, whatever order the file has them in."""
    random = np.random.default_rng(0)
    expected: list[list[list[float]]] = [[[10, 20, 50, 50]]]
    items = []
    for number in range(20):
        tree.add(f"{number}.jpg", 1000 - number)
        corners = [random.integers(0, 40, 4).tolist() for _ in range(number % 4)]
        items += [item(1000 - number, x, y, w + 1, h + 1) for x, y, w, h in corners]
        expected.append([[x, y, x + w + 1, y + h + 1] for x, y, w, h in corners])
    order = random.permutation(len(items))
    tree.contents["train2017"]["annotations"] += [items[index] for index in order]
    data = tree.read(on_bad_box="error")
    for index in range(21):
        assert sorted(boxes_of(data, index)) == sorted(expected[index])
    assert data.counts["train"]["background_images"] == 5
