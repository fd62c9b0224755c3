"""Data: from image files to batches on the device. Knows no networks, training or configs."""

from mobilenext.data.box_transforms import BoxTransform
from mobilenext.data.boxes import BoxData, Boxes, BoxImages
from mobilenext.data.coco import coco
from mobilenext.data.datasets import (
    cifar10,
    digits,
    image_folder,
    imagenet,
    imagenette,
    synthetic,
)
from mobilenext.data.device import (
    Augment,
    DeviceBatches,
    Mixing,
    Photometric,
    box_texts,
    target_texts,
)
from mobilenext.data.loader import (
    Loader,
    eval_loader,
    evaluated_indices,
    train_loader,
    two_parts,
)
from mobilenext.data.sources import ImageData, labels_checksum, relative_name
from mobilenext.data.transforms import eval_transform, train_transform
from mobilenext.data.voc import voc

__all__ = [
    "Augment",
    "BoxData",
    "BoxImages",
    "BoxTransform",
    "Boxes",
    "DeviceBatches",
    "ImageData",
    "Loader",
    "Mixing",
    "Photometric",
    "box_texts",
    "cifar10",
    "coco",
    "digits",
    "eval_loader",
    "eval_transform",
    "evaluated_indices",
    "image_folder",
    "imagenet",
    "imagenette",
    "labels_checksum",
    "relative_name",
    "synthetic",
    "target_texts",
    "train_loader",
    "train_transform",
    "two_parts",
    "voc",
]
