"""Packs of images with boxes give the same batches as the files that they were made of."""

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mobilenext.data import coco, restart, train_loader, voc
from mobilenext.data.box_transforms import BoxTransform
from mobilenext.data.boxes import BoxData
from mobilenext.data.pack import PackImages
from mobilenext.data.packed_boxes import PackedBoxImages
from mobilenext.errors import InputError
from mobilenext.jobs.prepare_imagenet import prepare_imagenet
from mobilenext.runtime.distributed import Process
from tests.composed import composed
from tests.on_disk_boxes import coco_tree, voc_tree

CPU = Process(torch.device("cpu"))
NEEDS_RESTART = pytest.mark.skipif(
    not restart.available(), reason="needs the native decoder with libjpeg-turbo"
)
COLOURS = ["red", "green", "blue"]


def packed(source: Path, output: Path, *more: str) -> str:
    config = composed(f"source={source}", f"output={output}", *more, job="prepare_imagenet")
    prepare_imagenet(config, CPU)
    return str(output)


def of_voc(root: Path, **more: Any) -> BoxData:
    return voc(str(root), ["2007:trainval"], ["2007:test"], classes=COLOURS, **more)


def batches(data: BoxData, split: str = "train") -> list[tuple[torch.Tensor, torch.Tensor]]:
    images = getattr(data, split)
    transform = BoxTransform(64, images.boxes, zoom_out=3, iou_crop=True, hflip=0.5)
    with closing(train_loader(images, transform, seed=3, global_batch_size=3, workers=2)) as loader:
        return list(loader.epoch(1))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return voc_tree(tmp_path_factory.mktemp("boxes"))


@pytest.mark.parametrize("mode", ["copy", pytest.param("restart", marks=NEEDS_RESTART)])
def test_batches_are_the_same_bits(tree: Path, tmp_path: Path, mode: str) -> None:
    pack = packed(tree, tmp_path / "pack", f"mode={mode}")
    plain, from_pack = of_voc(tree), of_voc(tree, pack=pack)
    assert isinstance(from_pack.train, PackedBoxImages)
    assert "pack" in from_pack.train.name(0)
    for split in ("train", "val"):
        for one, other in zip(batches(plain, split), batches(from_pack, split), strict=True):
            assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_the_pack_is_read_ahead(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not the files that the boxes belong to."""
    images = of_voc(tree, pack=packed(tree, tmp_path / "pack", "mode=copy")).train
    asked = []
    monkeypatch.setattr(PackImages, "read_ahead", lambda _, indices: asked.append(indices))
    images.read_ahead(np.array([2, 0]))
    assert isinstance(images, PackedBoxImages)
    assert [indices.tolist() for indices in asked] == [images.places[[2, 0]].tolist()]


def test_coco_packs_too(tree: Path, tmp_path: Path) -> None:
    root = coco_tree(tmp_path / "coco", tree)
    pack = packed(root, tmp_path / "pack", "mode=copy")
    plain, from_pack = coco(str(root)), coco(str(root), pack=pack)
    for one, other in zip(batches(plain), batches(from_pack), strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_a_pack_of_other_images_is_refused(tree: Path, tmp_path: Path) -> None:
    other = voc_tree(tmp_path / "other", train=5, val=4)
    pack = packed(other, tmp_path / "pack", "mode=copy")
    with pytest.raises(InputError, match="are not there: VOC2007/JPEGImages/trainval_"):
        of_voc(tree, pack=pack)


def test_a_pack_of_smaller_images_is_refused(tree: Path, tmp_path: Path) -> None:
    pack = packed(tree, tmp_path / "pack", "mode=max_side", "val_mode=copy", "size=60")
    with pytest.raises(InputError, match="expected a pack of the images as they are"):
        of_voc(tree, pack=pack)


def test_a_pack_is_not_part_of_the_recipe(tree: Path) -> None:
    given = (f"data.root={tree}", "data=voc")
    plain = composed(*given, job="detect")
    assert plain.recipe() == composed(*given, "data.source.pack=/x", job="detect").recipe()
