"""Build tables from result.json files: `python scripts/tables.py runs/ [output=tables]`."""

from checkout import start

if __name__ == "__main__":
    start("tables")
