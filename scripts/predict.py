"""Classify pictures: `python scripts/predict.py checkpoint=runs/latest images=FOLDER`."""

from checkout import start

if __name__ == "__main__":
    start("predict")
