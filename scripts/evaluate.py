"""Evaluate a checkpoint: `python scripts/evaluate.py checkpoint=RUN/best.pt [data=...]`."""

from checkout import start

if __name__ == "__main__":
    start("evaluate")
