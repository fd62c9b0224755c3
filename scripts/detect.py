"""Train a detector: `python scripts/detect.py data=voc data.root=VOCdevkit init_from=RUN`."""

from checkout import start

if __name__ == "__main__":
    start("detect")
