import csv
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from mobilenext.errors import InputError
from mobilenext.tables.confusion import (
    ClassAccuracy,
    accuracy_by_class,
    frequent_confusions,
    lines_of,
    matrix_files,
    matrix_svg,
    mean_class_top1,
    read_evaluations,
    worst_classes,
)
from tests.results import small_result, write_evaluation, write_results

COUNTS = np.array([[8, 2, 0], [0, 0, 0], [1, 3, 4]])
CLASSES = ["cat", "dog", "<b>"]


def large(classes: int) -> tuple[np.ndarray, list[str]]:
    """A matrix of 50 images a class, of whom class i has i % 9 taken for the next one."""
    counts = np.zeros((classes, classes), np.int64)
    for one in range(classes):
        counts[one, (one + 1) % classes] = one % 9
        counts[one, one] = 50 - one % 9
    return counts, [f"class {one} of a name that is longer than a line" for one in range(classes)]


def test_what_a_matrix_says_of_each_class() -> None:
    by_class = accuracy_by_class(COUNTS, CLASSES)
    assert by_class == [
        ClassAccuracy("cat", 10, 80.0, "dog", 2),
        ClassAccuracy("dog", 0, None, "", 0),
        ClassAccuracy("<b>", 8, 50.0, "dog", 3),
    ]
    assert mean_class_top1(COUNTS) == 65.0
    assert [one.name for one in worst_classes(by_class, 5)] == ["<b>", "cat"]
    confusions = frequent_confusions(COUNTS, CLASSES, 2)
    assert confusions == [("<b>", "dog", 3, 8), ("cat", "dog", 2, 10)]


def test_few_classes_are_all_listed() -> None:
    assert lines_of(COUNTS, CLASSES) == [
        "class  images  top-1, %  most often taken for",
        "cat        10     80.00  dog (2)",
        "dog         0         -",
        "<b>         8     50.00  dog (3)",
    ]


def test_of_many_classes_the_worst_ones_are_listed() -> None:
    counts, classes = large(1000)
    lines = lines_of(counts, classes)
    assert len(lines) == 12
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("worst of 1,000 classes")
    assert lines[1] == "class 8 of a name tha...      50     84.00  class 9 of a name tha... (8)"
    assert "  class 8 of a name tha... taken for class 9 of a name tha...: 8 of 50" in lines
    right = np.diag(counts.sum(1))
    assert lines_of(right, classes) == ["no image of the 1,000 classes is misclassified"]


def test_a_large_matrix_is_an_archive_of_arrays(tmp_path: Path) -> None:
    counts, classes = large(101)
    files = matrix_files(counts, [*classes[:-1], "a\udcff,b"])
    assert files["confusion.csv"] is None
    content = files["confusion.npz"]
    assert isinstance(content, bytes)
    (tmp_path / "x.npz").write_bytes(content)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as stored:
        assert (stored["counts"] == counts).all()
        assert stored["classes"][-1] == "a\\xff,b"
    text = files["classes.csv"]
    assert isinstance(text, str)
    rows = list(csv.DictReader(text.splitlines()))
    assert rows[-1] == {
        "class": "a\\xff,b", "images": "50", "top1": "98.000", "taken_for": classes[0],
        "times": "1",
    }  # fmt: skip
    assert len(rows) == 101


def test_evaluations_are_read_as_they_were_written(tmp_path: Path) -> None:
    runs = write_results(tmp_path, small_result())
    assert read_evaluations([runs]) == []
    folder = write_evaluation(runs, COUNTS, CLASSES)
    (found,) = read_evaluations([runs, runs])
    assert found.by_class == accuracy_by_class(COUNTS, CLASSES)
    assert found.counts is not None
    assert (found.counts == COUNTS).all()
    assert found.table.rows[1] == ("dog", "0", "–", "", "")
    assert found.title == "MobileNeXt on pets: top-1 66.67 % of 18 images"
    (folder / "classes.csv").unlink()  # as one from before
    assert read_evaluations([folder]) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.csv", ""),
        ("classes.csv", "class,images\na,1\n"),
        ("classes.csv", "class,images,top1,taken_for,times\na,b,c,d,e\n"),
        ("classes.csv", "class,images,top1,taken_for,times\na,1\n"),
        ("confusion.csv", "class,cat\ncat,1\n"),
        ("confusion.csv", "class,cat,dog,<b>\ncat,1,1,1\ndog,1,1\n<b>,1,1,1\n"),
        ("confusion.csv", "class,cat,dog,<b>\ncat,1,1,1\ndog,1,1,-1\n<b>,1,1,1\n"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, text: str) -> None:
    folder = write_evaluation(tmp_path, COUNTS, CLASSES)
    (folder / name).write_text(text)
    with pytest.raises(InputError, match=r"expected classes.csv and confusion.csv as evaluate"):
        read_evaluations([tmp_path])


def test_a_picture_has_a_name_and_its_counts() -> None:
    root = ElementTree.fromstring(matrix_svg("m", "A & B", COUNTS, CLASSES))
    said = {one.attrib.get("id", ""): one.text for one in root.iter() if one.text}
    assert root.attrib["aria-labelledby"].split() == ["m-title", "m-desc"]
    assert said["m-title"] == "A & B"
    assert "12 of 18 images" in (said["m-desc"] or "")
    texts = [one.text for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["cat", "cat", "dog", "dog", "<b>", "<b>", "8", "2", "1", "3", "4"]


def test_large_matrices_are_not_drawn(tmp_path: Path) -> None:
    for classes, drawn in ((40, True), (41, False)):
        folder = write_evaluation(tmp_path / str(classes), *large(classes))
        (found,) = read_evaluations([folder])
        assert (found.svg("x") is not None, found.matrix is not None) == (drawn, drawn)
        assert len(found.table.rows) == 10
        assert found.table.title == f"The worst of {classes} classes"
        assert json.loads((folder / "result.json").read_text())["count"] == 50 * classes
