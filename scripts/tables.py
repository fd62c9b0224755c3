"""Build tables from result.json files: `python scripts/tables.py runs/ [output=tables]`."""

from mobilenext.main import launch
from mobilenext.render_tables import render_tables

if __name__ == "__main__":
    launch(render_tables, config_name="tables", positional="runs")
