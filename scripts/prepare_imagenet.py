"""Make a pack of ImageNet: `python scripts/prepare_imagenet.py source=... output=...`."""

from mobilenext.jobs.prepare_imagenet import PrepareImagenetConfig, prepare_imagenet
from mobilenext.main import launch

if __name__ == "__main__":
    launch(prepare_imagenet, PrepareImagenetConfig, "prepare_imagenet")
