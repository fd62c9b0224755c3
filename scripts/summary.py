"""Print what a network costs: `python scripts/summary.py model=mobilenext width=1.0`."""

from mobilenext.main import launch
from mobilenext.summary import summary

if __name__ == "__main__":
    launch(summary, config_name="summary")
