"""Layouts: how a data set lies in a folder. The one place that looks at a folder for it."""

from collections.abc import Collection
from enum import Enum
from pathlib import Path

from mobilenext.data.imagenet_tars import TRAIN_TAR, VAL_TAR
from mobilenext.data.pack import is_pack
from mobilenext.data.parquet import parquet_files
from mobilenext.data.sources import is_image
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


VAL_NAMES = ("val", "valid", "validation", "test", "testing", "dev", "eval")
"""Names that folders with validation images have elsewhere."""


def has_splits(base: Path, val_folder: str | None, val_share: float | None) -> bool:
    """Whether a folder has the class folders that both splits are made of.

    Args:
        base: A folder that may have class folders, but no other layout.
        val_folder: Of the config; see `mobilenext.config.groups.DataConfig`.
        val_share: Likewise.

    Raises:
        InputError: They lie otherwise than as expected; it says what to do.
    """
    expected = f"{printable(base)}: expected train/<class>/* and val/<class>/*"
    folders = sorted(path.name for path in base.iterdir() if path.is_dir())
    folders = [name for name in folders if not name.startswith(".")]
    if _is_there(base, Layout.CLASS_FOLDERS):
        if val_share is not None or (base / (val_folder or "val")).is_dir():
            return True
        others = [name for name in folders if name.lower() in VAL_NAMES]
        raise InputError(
            f"{printable(base)}: expected {val_folder or 'val'}/<class>/* beside train, found "
            + (f"{others[0]}; add data.val_folder={others[0]}" if others else
               "only train; add data.val_share=0.2 to hold a fifth of its images out, or make "
               "that folder")
        )  # fmt: skip
    spelled = ("train", "training")
    other_case = [name for name in folders if name.lower() in spelled and name != "train"]
    if other_case:
        raise InputError(f"{expected}, found {printable(other_case[0])}; rename it to train")
    with_images = [name for name in folders if _has_images(base / name)]
    if with_images and val_share is None:
        raise InputError(
            f"{expected}, found {len(with_images)} folders with images (such as "
            f"{printable(with_images[0])}) and no train; if they are the classes, add "
            "data.val_share=0.2 to hold a fifth of the images out"
        )
    for name in () if with_images else folders:
        if any(_has_images(path) for path in (base / name).glob("*/")):
            raise InputError(
                f"{expected}, found the class folders one folder below: "
                f"data.root={printable(base / name)}"
            )
    return bool(with_images)


def _has_images(folder: Path) -> bool:
    try:
        return any(is_image(path.name) and not path.is_dir() for path in folder.iterdir())
    except OSError:  # opening it says what is wrong
        return False
