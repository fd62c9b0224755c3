"""Layouts: how a data set lies in a folder. The one place that looks at a folder for it."""

from collections.abc import Collection
from enum import Enum
from pathlib import Path

from mobilenext.data.imagenet_tars import TRAIN_TAR, VAL_TAR
from mobilenext.data.pack import is_pack
from mobilenext.data.parquet import parquet_files
from mobilenext.data.webdataset import TRAIN_TARS
from mobilenext.errors import InputError
from mobilenext.files import printable


class Layout(Enum):
    """The layouts that can be read; a pack records the value of its source.

    Order of precedence: a folder may have several layouts, and the first one counts, of those that
    the caller accepts.
    """

    IMAGENET_TARS = "ImageNet's official tars"
    PACK = "a pack"
    WEBDATASET = "WebDataset"
    PARQUET = "Parquet"
    CLASS_FOLDERS = "class folders"


def layout_of(base: Path, accepted: Collection[Layout] = tuple(Layout)) -> Layout | None:
    """The layout of a data set; None: the folder has none of those accepted.

    Only names are looked at. A part of a layout is enough, so that opening it can name the missing
    rest.

    Args:
        base: The folder.
        accepted: The layouts that the caller can use.
    """
    in_order = (layout for layout in Layout if layout in accepted)
    return next((layout for layout in in_order if _is_there(base, layout)), None)


def _is_there(base: Path, layout: Layout) -> bool:
    match layout:
        case Layout.IMAGENET_TARS:
            return (base / TRAIN_TAR).exists() or (base / VAL_TAR).exists()
        case Layout.PACK:
            return is_pack(base)
        case Layout.WEBDATASET:
            return any(base.glob(TRAIN_TARS))
        case Layout.PARQUET:
            return bool(parquet_files(base, ("train",)))
        case Layout.CLASS_FOLDERS:
            train = base / "train"
            return train.is_dir() and any(path.is_dir() for path in train.iterdir())


NEARLY_RIGHT = (
    ("train-*.tar.*", "is compressed, so its images can't be found one by one: unpack it to a "
     "plain tar (train-*.tar)"),
    ("train-*.tgz", "is compressed, so its images can't be found one by one: unpack it to a plain "
     "tar (train-*.tar)"),
    ("train.tar", "is one tar: unpack it into class folders; if each image has a .cls beside it, "
     "call it train-0.tar"),
    ("train/*.tar*", "lies in a folder: shards of WebDataset have to be data.root/train-*.tar"),
    ("train/*.parquet", "lies in a folder: it has to be data.root/train-*.parquet, or be called "
     "train/0000.parquet"),
    ("*.parquet", "has another name: the files of the splits have to be called train-*.parquet and "
     "validation-*.parquet"),
    ("ILSVRC2012_img_*.tar", "is ImageNet's official tar: use data=imagenet"),
    ("*.zip", "is an archive: unpack it"),
    ("*.tar*", "is an archive: unpack it"),
    ("*.tgz", "is an archive: unpack it"),
    ("*/train", "lies one folder below: data.root has to be the folder above train and val"),
)  # fmt: skip
"""Files that people have instead of a layout: pattern, and the advice for it."""


def check_nearly_right(base: Path) -> None:
    """Raise `InputError` if a folder without a layout has files that are nearly one.

    Args:
        base: A folder for which `layout_of` is None.
    """
    for pattern, advice in NEARLY_RIGHT:
        found = sorted(path for path in base.glob(pattern) if not path.name.startswith("."))
        if found:
            raise InputError(
                f"{printable(base)}: expected train/<class>/* and val/<class>/*, train-*.tar, "
                f"train-*.parquet or a pack; {printable(found[0].relative_to(base))} {advice}"
            )
