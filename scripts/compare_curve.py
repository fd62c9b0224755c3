"""Compare a learning curve with the released log: `python scripts/compare_curve.py RUN`."""

from mobilenext.compare_curve import compare_curve
from mobilenext.main import launch

if __name__ == "__main__":
    launch(compare_curve, config_name="compare_curve", positional="runs")
