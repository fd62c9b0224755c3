"""Evaluate a checkpoint: `python scripts/evaluate.py RUN [data=...] [predictions=FILE.csv]`."""

from checkout import start

if __name__ == "__main__":
    start("evaluate")
