"""Make a pack of ImageNet: `python scripts/prepare_imagenet.py source=... output=...`."""

from checkout import start

if __name__ == "__main__":
    start("prepare_imagenet")
