"""Published numbers, each with its source and how far to trust it."""

from mobilenext.tables.paper import PublishedNumber, PublishedRow, published_rows, tag_meanings

__all__ = ["PublishedNumber", "PublishedRow", "published_rows", "tag_meanings"]
