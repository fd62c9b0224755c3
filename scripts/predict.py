"""Classify pictures: `python scripts/predict.py runs/latest FOLDER`."""

from checkout import start

if __name__ == "__main__":
    start("predict")
