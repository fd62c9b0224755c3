"""Write a page about runs: `python scripts/report.py runs/ [output=report.html]`."""

from mobilenext.main import launch
from mobilenext.report import report

if __name__ == "__main__":
    launch(report, config_name="report", positional="runs")
