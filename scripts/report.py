"""Write a page about runs: `python scripts/report.py runs/ [output=report.html]`."""

from mobilenext.report import report

from mobilenext.main import launch

if __name__ == "__main__":
    launch(report, config_name="report", positional="runs")
