"""Compare a learning curve with the released log: `python scripts/compare_curve.py RUN`."""

from checkout import start

if __name__ == "__main__":
    start("compare_curve")
