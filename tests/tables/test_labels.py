"""What labels.yaml may hold."""

import pytest

from mobilenext.errors import InputError
from mobilenext.tables.labels import Comparison, labels, read_labels

WHOLE = """
labels:
  one: The first
  two: The second
without_dropout: [two]
comparisons:
  both:
    title: Both
    networks: [two, one]
"""


def test_labels_keep_their_order() -> None:
    read = read_labels(WHOLE)
    assert list(read.labels) == ["one", "two"]
    assert read.comparisons == {"both": Comparison("Both", ("two", "one"))}
    assert read.without_dropout == ("two",)
    assert (read.label("two"), read.label("three")) == ("The second", "three")
    assert [read.place(model) for model in ("one", "two", "three")] == [0, 1, 2]


def test_the_file_is_whole() -> None:
    assert labels().labels["mobilenext"] == "MobileNeXt"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (WHOLE, "", r"labels\.yaml: expected the entries .*; it lacks labels"),
        (WHOLE, "[1", r"labels\.yaml, line 1: expected labels in YAML"),
        ("without_dropout: [two]\n", "", "it lacks without_dropout"),
        ("without_dropout: [two]", "without_dropout: [two]\nmore: 1", "got the unknown more"),
        ("two: The second", "two: The second\n  two: Twice", "line 5: .*two stands there twice"),
        ("two: The second", "two:", r"labels\.two: expected a text, got None"),
        ("two: The second", "2: The second", "labels: expected names as keys, got 2"),
        ("[two]", "[three]", "without_dropout: expected networks that have a label, got three"),
        ("[two]", "two", "without_dropout: expected a list of networks, got 'two'"),
        ("[two, one]", "[two, three]", r"comparisons\.both\.networks: .* a label, got three"),
        ("[two, one]", "[two, two]", "each network once, got two, two"),
        ("[two, one]", "[]", "at least one network"),
        ("title: Both", "titel: Both", r"comparisons\.both: .*got the unknown titel"),
        ("title: Both", "title: 3", r"comparisons\.both\.title: expected a text, got 3"),
    ],
)
def test_errors_name_the_place(old: str, new: str, message: str) -> None:
    assert old in WHOLE
    with pytest.raises(InputError, match=message):
        read_labels(WHOLE.replace(old, new))
