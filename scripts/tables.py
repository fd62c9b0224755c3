"""Build tables from result.json files: `python scripts/tables.py runs/ [output=tables]`."""

from mobilenext.jobs.tables import TablesConfig, tables
from mobilenext.main import launch

if __name__ == "__main__":
    launch(tables, TablesConfig, "tables")
