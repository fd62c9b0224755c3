"""Say whether loading is the wall: `python scripts/loader_report.py data=... [as for train.py]`."""

from mobilenext.loader_report import loader_report
from mobilenext.main import launch

if __name__ == "__main__":
    launch(loader_report, config_name="loader_report")
