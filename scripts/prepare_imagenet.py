"""Make a pack of ImageNet: `python scripts/prepare_imagenet.py source=... output=...`."""

from mobilenext.main import launch
from mobilenext.prepare_imagenet import prepare_imagenet

if __name__ == "__main__":
    launch(prepare_imagenet, config_name="prepare_imagenet")
