"""Say whether loading is the wall: `python scripts/loader_report.py data=... [as for train.py]`."""

from mobilenext.jobs.loader_report import LoaderReportConfig, loader_report
from mobilenext.main import launch

if __name__ == "__main__":
    launch(loader_report, LoaderReportConfig, "loader_report")
