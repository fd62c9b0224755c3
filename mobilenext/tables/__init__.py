"""Published numbers, each with its source and how far to trust it; measured ones beside them."""

from mobilenext.program import fraction
from mobilenext.tables.costs import Network
from mobilenext.tables.layout import tables_of
from mobilenext.tables.paper import (
    NamedRow,
    PublishedNumber,
    PublishedRow,
    ReleasedCurve,
    published_rows,
    published_table,
    released_curves,
    released_recipe,
    tag_meanings,
)
from mobilenext.tables.render import Table, to_csv, to_latex, to_markdown
from mobilenext.tables.results import (
    Group,
    Protocol,
    Result,
    arguments_of,
    decimal,
    group_results,
    images_per_norm,
    measured_results,
    read_results,
)

__all__ = [
    "Group",
    "NamedRow",
    "Network",
    "Protocol",
    "PublishedNumber",
    "PublishedRow",
    "ReleasedCurve",
    "Result",
    "Table",
    "arguments_of",
    "decimal",
    "fraction",
    "group_results",
    "images_per_norm",
    "measured_results",
    "published_rows",
    "published_table",
    "read_results",
    "released_curves",
    "released_recipe",
    "tables_of",
    "tag_meanings",
    "to_csv",
    "to_latex",
    "to_markdown",
]
