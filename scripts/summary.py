"""Print what a network costs: `python scripts/summary.py model=mobilenext width=1.0`."""

from checkout import start

if __name__ == "__main__":
    start("summary")
