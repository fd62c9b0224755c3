"""Evaluate a checkpoint: `python scripts/evaluate.py checkpoint=RUN/best.pt [data=...]`."""

from mobilenext.jobs.evaluate import EvaluateConfig, evaluate
from mobilenext.main import launch

if __name__ == "__main__":
    launch(evaluate, EvaluateConfig, "evaluate")
