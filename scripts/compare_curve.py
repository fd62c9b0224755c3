"""Compare a learning curve with the released log: `python scripts/compare_curve.py RUN`."""

from mobilenext.jobs.compare_curve import CompareCurveConfig, compare_curve
from mobilenext.main import launch

if __name__ == "__main__":
    launch(compare_curve, CompareCurveConfig, "compare_curve")
