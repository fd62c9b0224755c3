"""Print what a network costs: `python scripts/summary.py model=mobilenext width=1.0`."""

from mobilenext.jobs.summary import SummaryConfig, summary
from mobilenext.main import launch

if __name__ == "__main__":
    launch(summary, SummaryConfig, "summary")
