"""Predictions image by image, as a table: what `predictions=FILE.csv` and `predict` leave."""

from collections.abc import Sequence

from mobilenext.files import printable
from mobilenext.tables.render import Table


def predictions_table(
    images: Sequence[str],
    labels: Sequence[str] | None,
    predicted: Sequence[Sequence[str]],
    probabilities: Sequence[Sequence[float]],
) -> Table:
    """A row for each image: its name, its class, and the classes that it is taken for.

    Args:
        images: Names of the images, at least one.
        labels: Their classes, "" where one is not known; None: there is no such column.
        predicted: The most probable classes of each, falling; equally many.
        probabilities: Theirs.
    """
    ranks = ["", *(f"_{rank}" for rank in range(2, 1 + len(predicted[0])))]
    columns = [f"{what}{rank}" for rank in ranks for what in ("predicted", "probability")]
    rows = []
    for place, (names, shares) in enumerate(zip(predicted, probabilities, strict=True)):
        label = () if labels is None else (printable(labels[place]),)
        cells = [printable(name) for name in names]
        pairs = zip(cells, (f"{share:.6g}" for share in shares), strict=True)
        rows.append((printable(images[place]), *label, *(cell for pair in pairs for cell in pair)))
    header = ("image", *(() if labels is None else ("class",)), *columns)
    return Table("predictions", "", header, tuple(rows))
