"""Write a page about runs: `python scripts/report.py runs/ [output=report.html]`."""

from mobilenext.jobs.report import ReportConfig, report
from mobilenext.main import launch

if __name__ == "__main__":
    launch(report, ReportConfig, "report")
