"""Making packs: nothing is lost, nothing is altered unsaid, and it can be killed at any time."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from timm.data.imagenet_info import ImageNetInfo

import mobilenext.jobs.prepare_imagenet as job
from mobilenext.data import image_folder, native, restart
from mobilenext.data.layouts import Layout
from mobilenext.data.pack import PackImages, PackWriter, open_pack
from mobilenext.errors import InputError
from mobilenext.jobs.prepare_imagenet import PrepareImagenetConfig
from mobilenext.runtime.distributed import Process
from tests.commands import REPO, environment
from tests.conftest import Run
from tests.data.conftest import cache, folder, official  # noqa: F401
from tests.data.test_layouts import fill

pytestmark = pytest.mark.skipif(
    not restart.available(), reason="the native decoder was not built with libjpeg-turbo"
)


def prepare(source: Path | None, output: Path, **more: Any) -> dict[str, Any]:
    config = PrepareImagenetConfig(
        str(output), None if source is None else str(source), workers=2, **more
    )
    return job.prepare_imagenet(config, Process(torch.device("cpu")))


def content(pack: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(pack.iterdir())}


def pixels(data: bytes | memoryview) -> tuple[str, np.ndarray]:
    with PIL.Image.open(io.BytesIO(data)) as image:
        image.load()
        return image.mode, np.asarray(image)


def splits(pack: Path) -> dict[str, PackImages]:
    data = open_pack(pack)
    assert isinstance(data.train, PackImages)
    assert isinstance(data.val, PackImages)
    return {"train": data.train, "val": data.val}


def check_lossless(source: Path, pack: Path, names: tuple[str, ...] = ("train", "val")) -> None:
    expected = image_folder(str(source))
    assert open_pack(pack).classes == expected.classes
    for split in names:
        ours, theirs = splits(pack)[split], getattr(expected, split)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        for index in range(len(theirs)):
            assert ours.names[index] == str(Path(theirs.name(index)).relative_to(source / split))
            (mode, got), (expected_mode, wanted) = map(
                pixels, (ours.read(index), theirs.read(index))
            )
            assert mode == expected_mode
            np.testing.assert_array_equal(got, wanted)
            row = ours.index[index]
            assert (row["height"], row["width"]) == wanted.shape[:2]


def test_the_command_makes_a_pack(run: Run, photo_folder: Path, tmp_path: Path) -> None:
    arguments = (f"source={photo_folder}", "output=pack", "workers=2")
    done = run("scripts/prepare_imagenet.py", *arguments)
    assert "train: 24 images" in done.stdout
    assert "restarts added: 24" in done.stdout
    assert "\r" not in done.stdout + done.stderr  # a bar is for terminals
    pack = tmp_path / "pack"
    check_lossless(photo_folder, pack)
    report = json.loads((pack / "report.json").read_text())
    assert report["train"]["images"] == 24
    assert report["train"]["bytes_before"] == sum(
        path.stat().st_size for path in (photo_folder / "train").rglob("*.jpg")
    )
    train = splits(pack)["train"]
    stored = sum(len(train.read(index)) + 2 * len(train.segments(index)) for index in range(24))  # type: ignore[arg-type]
    assert report["train"]["bytes_after"] == stored
    assert not (pack / ".work").exists()
    shard = pack / "train-000.bin"
    data = bytearray(shard.read_bytes())
    data[-5] ^= 4
    shard.write_bytes(data)
    with pytest.raises(InputError) as caught:
        prepare(None, pack, verify=True)
    assert str(caught.value).startswith("1 of 34 images are corrupt:\n")
    assert "train-000.bin, bytes" in str(caught.value)
    assert "train/temple/9.jpg" in str(caught.value)


KILLED = """
import os, signal, sys
import mobilenext.data.pack as pack
import mobilenext.jobs.prepare_imagenet as job
from mobilenext.main import launch

job.PART, job.CHUNK = 5, 2
pack.PackWriter.__init__.__defaults__ = (60_000,)
PLACES = {"flush": (pack.os, "fsync"), "add": (pack.PackWriter, "add"),
          "index": (pack.PackWriter, "_write_index"), "remove": (pack.shutil, "rmtree")}

def dying(function, count):
    def counted(*arguments, **named):
        nonlocal count
        count -= 1
        if not count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return counted

for kill in sys.argv.pop(1).split(","):
    place, _, count = kill.partition(":")
    child = os.fork()
    if child == 0:
        if count:
            owner, name = PLACES[place]
            setattr(owner, name, dying(getattr(owner, name), int(count)))
        launch(lambda: job.prepare_imagenet, job.PrepareImagenetConfig, "prepare_imagenet")
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def killed(kills: str, source: Path, output: Path) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, kills, f"source={source}", f"output={output}", "workers=2"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**environment(), "PYTHONPATH": str(REPO)},
        check=True,
    )
    return [int(line) for line in done.stdout.splitlines() if line.lstrip("-").isdigit()]


def test_killed_anywhere_and_run_again(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PackWriter.__init__, "__defaults__", (60_000,))
    prepare(photo_folder, tmp_path / "whole")
    kills = "flush:1,add:3,flush:4,add:8,flush:9,index:2,remove:1,no,no"
    codes = killed(kills, photo_folder, tmp_path / "killed")
    assert codes == [-9] * 7 + [0, 0]
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert len(list((tmp_path / "whole").glob("train-*.bin"))) > 2
    check_lossless(photo_folder, tmp_path / "killed")


def test_the_number_of_workers_and_parts_does_not_matter(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(photo_folder, tmp_path / "a")
    monkeypatch.setattr(job, "PART", 7)
    monkeypatch.setattr(job, "CHUNK", 1)
    prepare(photo_folder, tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


@pytest.mark.parametrize("mode", ["max_side", "short_side"])
def test_resized_training_images(photo_folder: Path, tmp_path: Path, mode: str) -> None:
    report = prepare(photo_folder, tmp_path / "pack", mode=mode, size=100)
    described = json.loads((tmp_path / "pack" / "pack.json").read_text())
    assert described["lossless"] == {"train": False, "val": True}
    assert (described["mode"], described["size"], described["quality"]) == (mode, 100, 90)
    assert report["train"]["done"] == {"resized": 24}
    assert report["val"]["done"] == {"restarts added": 10}
    size = (100, 80) if mode == "max_side" else (125, 100)
    image, _ = open_pack(tmp_path / "pack").train[3]
    assert image.size == size
    check_lossless(photo_folder, tmp_path / "pack", ("val",))
    report = prepare(photo_folder, tmp_path / "same", mode=mode, size=500, quality=100)
    assert report["train"]["done"] == {"kept: would be larger": 24}
    check_lossless(photo_folder, tmp_path / "same")


def test_copies_need_no_native_decoder(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "library", lambda: None)
    report = prepare(photo_folder, tmp_path / "pack", mode="copy")
    assert report["train"]["done"] == {"copied": 24}
    for split in ("train", "val"):
        theirs = getattr(image_folder(str(photo_folder)), split)
        ours = splits(tmp_path / "pack")[split]
        assert all(ours.read(index) == theirs.read(index) for index in range(len(ours)))
    with pytest.raises(InputError, match=r"mode=restart: .*install a C compiler.*mode=copy"):
        prepare(photo_folder, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.fixture
def odd(development_data: Path, tmp_path: Path) -> Path:
    """All odd files as one class, and sound ones as validation images."""
    root = tmp_path / "source"
    shutil.copytree(development_data / "odd", root / "train" / "odd")
    good = sorted((development_data / "imagenet_samples").rglob("*.JPEG"))[:3]
    (root / "val" / "odd").mkdir(parents=True)
    for path in good:
        shutil.copy(path, root / "val" / "odd")
    return root


@pytest.mark.filterwarnings("ignore")  # Pillow's, of bad EXIF
def test_odd_files_are_kept_and_named(odd: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"odd/.*could not decode it.*add on_bad_image=skip"):
        prepare(odd, tmp_path / "error")
    kept = prepare(odd, tmp_path / "keep", on_bad_image="keep")["train"]
    skipped = prepare(odd, tmp_path / "skip", on_bad_image="skip")["train"]
    bad = {Path(name).name for name in kept["odd"]["undecodable"]}
    assert {"zero_bytes.JPEG", "truncated_half.JPEG", "gzipped_jpeg.JPEG"} <= bad
    assert kept["images"] == 28
    assert skipped["images"] == 28 - len(bad)
    assert skipped["done"]["left out: undecodable"] == len(bad)
    odd_names = {kind: {Path(name).name for name in names} for kind, names in kept["odd"].items()}
    assert {"cmyk_tench.JPEG", "pil_sample_cmyk.jpg"} <= odd_names["CMYK"]
    assert "png_rgba_named.JPEG" in odd_names["PNG named .JPEG"]
    assert "hopper_gray.jpg" in odd_names["grey"]
    assert "exif_corrupt_rgb.JPEG" in odd_names["corrupt EXIF"]
    assert "exif_orientation6.JPEG" not in odd_names["corrupt EXIF"]
    assert "corrupted.jpg" in odd_names["a damaged JPEG"]

    theirs = image_folder(str(odd)).train
    ours = splits(tmp_path / "keep")["train"]
    for index in range(len(ours)):
        data = theirs.read(index)  # type: ignore[attr-defined]
        if ours.segments(index) is None:
            assert ours.read(index) == data
        else:
            for got, wanted in zip(pixels(ours.read(index)), pixels(data), strict=True):
                np.testing.assert_array_equal(got, wanted)
        if Path(ours.names[index]).name in bad:
            assert ours.index[index]["width"] == 0
            with pytest.raises(InputError, match="expected an image file"):
                ours[index]
    names = [splits(tmp_path / "skip")["train"].names[i] for i in range(skipped["images"])]
    assert names == [n for n in (ours.names[i] for i in range(28)) if Path(n).name not in bad]


def test_what_could_not_be_proved_stays_as_it_was(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = restart.restart_index

    def wrong(data: bytes) -> Any:
        written, segments = real(data)  # type: ignore[misc]
        kind = len(data) % 3
        if kind == 0:
            image, file = PIL.Image.open(io.BytesIO(data)), io.BytesIO()
            image.point([value ^ 1 for value in range(256)] * 3).save(file, "JPEG", quality=90)
            return file.getvalue(), segments
        return (written[:-500], segments) if kind == 1 else (written * 2, segments)

    monkeypatch.setattr(restart, "restart_index", wrong)
    done = prepare(photo_folder, tmp_path / "pack")["train"]["done"]
    assert sum(done.values()) == 24
    reasons = {"could not be decoded again", "pixels would differ", "would be larger"}
    assert set(done) == {f"kept: {reason}" for reason in reasons}
    theirs, ours = image_folder(str(photo_folder)).train, splits(tmp_path / "pack")["train"]
    assert all(ours.read(index) == theirs.read(index) for index in range(24))  # type: ignore[attr-defined]


def test_official_tars_give_the_pack_of_their_folders(
    folder: Path,  # noqa: F811
    official: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    prepare(official, tmp_path / "from_tars")
    prepare(folder, tmp_path / "from_folder")
    one, two = content(tmp_path / "from_tars"), content(tmp_path / "from_folder")
    for name in two.keys() - {"pack.json", "report.json"}:
        assert one[name] == two[name], name
    described = json.loads(one["pack.json"])
    assert described["source"]["kind"] == "ImageNet's official tars"


def test_a_part_of_the_images(photo_folder: Path, tmp_path: Path) -> None:
    report = prepare(photo_folder, tmp_path / "pack", limit=4)
    assert (report["train"]["images"], report["val"]["images"]) == (4, 4)
    assert splits(tmp_path / "pack")["train"].labels.tolist() == [0, 0, 1, 1]


def test_shuffled_training_images(photo_folder: Path, tmp_path: Path) -> None:
    """The same images under the same names and labels; those of validation keep their order."""
    plain, shuffled = tmp_path / "plain", tmp_path / "shuffled"
    prepare(photo_folder, plain)
    report = prepare(photo_folder, shuffled, order="shuffled")
    assert (report["order"], report["train"]["images"]) == ("shuffled", 24)
    assert "order" not in content(plain)["pack.json"].decode()
    one, two = splits(plain)["train"], splits(shuffled)["train"]
    of = {one.names[i]: (one.read(i), int(one.labels[i])) for i in range(24)}
    assert {two.names[i]: (two.read(i), int(two.labels[i])) for i in range(24)} == of
    assert np.count_nonzero(np.diff(two.labels)) > 3 > np.count_nonzero(np.diff(one.labels))
    check_lossless(photo_folder, shuffled, ("val",))
    prepare(photo_folder, tmp_path / "again", order="shuffled")
    assert content(tmp_path / "again") == content(shuffled)
    for pack, order in ((plain, "shuffled"), (shuffled, "source")):
        with pytest.raises(InputError, match="was made with other values of order; choose another"):
            prepare(photo_folder, pack, order=order)


def test_classes_and_counts(photo_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected the 1000 synsets of ImageNet-1k, got 2"):
        prepare(photo_folder, tmp_path / "pack", classes="imagenet")
    small = tmp_path / "small"
    picture = (photo_folder / "val" / "flower" / "0.jpg").read_bytes()
    for split in ("train", "val"):
        for synset in ImageNetInfo("imagenet-1k").label_names():
            (small / split / synset).mkdir(parents=True)
            (small / split / synset / "a.JPEG").write_bytes(picture)
    with pytest.raises(InputError, match=r"train has 1,000 images, ImageNet-1k has 1,281,167"):
        prepare(small, tmp_path / "pack", classes="imagenet")
    report = prepare(small, tmp_path / "pack", limit=5)
    assert report["notes"][1] == "val has 1,000 images, ImageNet-1k has 50,000"


def test_what_is_refused(photo_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "pack"
    with pytest.raises(InputError, match="expected a folder, found none there"):
        prepare(tmp_path / "nowhere", output)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="expected the folders train and val, or ILSVRC2012_img"):
        prepare(tmp_path / "empty", output)
    with pytest.raises(InputError, match="expected a new or empty folder, found train, val"):
        prepare(photo_folder, photo_folder)
    assert not output.exists()
    prepare(photo_folder, output, limit=2)
    before = content(output)
    assert prepare(photo_folder, output, limit=2)["train"]["images"] == 2
    with pytest.raises(InputError, match="was made with other values of limit; choose another"):
        prepare(photo_folder, output)
    assert content(output) == before
    assert prepare(None, output, verify=True) == {"images": 4, "corrupt": 0}
    config = PrepareImagenetConfig(str(output), str(photo_folder))
    two = Process(torch.device("cpu"), world_size=2)
    with pytest.raises(InputError, match=r"expected one process.*run it without torchrun"):
        job.prepare_imagenet(config, two)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"val_mode": "max_side"}, "val_mode=max_side: expected one of copy, restart"),
        ({"mode": "webp"}, "mode=webp: expected one of copy, restart, max_side, short_side"),
        ({"mode": "max_side"}, "size=null: expected pixels"),
        ({"size": 4}, "size=4: expected null, unless"),
        ({"quality": 0}, "quality=0"),
        ({"workers": 0}, "workers=0"),
        ({"source": None}, "source=null: expected a folder with images"),
        ({"on_bad_image": "repair"}, "expected one of error, skip, keep"),
        ({"order": "blocks"}, "order=blocks: expected one of source, shuffled"),
    ],
)
def test_wrong_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PrepareImagenetConfig(**{"output": "x", "source": "y", **values})


def test_a_full_disk_is_one_message_and_the_work_goes_on_later(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "PART", 5)
    add, calls = PackWriter.add, 0

    def full(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        with arguments[0]._writable():
            if calls == 13:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(PackWriter, "add", full)
        with pytest.raises(InputError, match=r"No space left on device.*run the same command"):
            prepare(photo_folder, tmp_path / "pack")
    calls = -100
    monkeypatch.setattr(PackWriter, "add", full)
    prepare(photo_folder, tmp_path / "pack")
    assert calls == -100 + 24 - 10 + 10  # two parts of five were there
    check_lossless(photo_folder, tmp_path / "pack")


def test_one_root_for_folders_packs_and_shards(photo_folder: Path, tmp_path: Path) -> None:
    """What lies at data.root is found out, and gives the same images in the same order."""
    pack = tmp_path / "pack"
    prepare(photo_folder, pack, mode="copy")
    unpacked, packed = image_folder(str(photo_folder)), image_folder(str(pack))
    assert packed.classes == unpacked.classes
    for split in ("train", "val"):
        one, two = getattr(unpacked, split), getattr(packed, split)
        assert one.labels.tolist() == two.labels.tolist()
        assert all(one.read(i) == bytes(two.read(i)) for i in range(len(one)))
    with pytest.raises(InputError, match=r"data\.reencoded=true: .* are as the source had them"):
        image_folder(str(pack), reencoded=True)
    smaller = tmp_path / "smaller"
    prepare(photo_folder, smaller, mode="short_side", size=64)
    with pytest.raises(InputError, match=r"encoded anew \(short side 64, quality 90\); add data"):
        image_folder(str(smaller))
    images = image_folder(str(smaller), reencoded=True)
    assert images.train[0][0].size == (80, 64)
    assert images.val[0][0].size == (200, 160)


def test_two_processes_train_on_a_pack(photo_folder: Path, tmp_path: Path, run: Run) -> None:
    """Each image of the validation split is counted once, and the result says what decoded it."""
    pack = tmp_path / "pack"
    prepare(photo_folder, pack)
    run(
        "train.py", "data=imagefolder", f"data.root={pack}", "data.image_size=32", "width=0.35",
        "data.global_batch_size=8", "epochs=1", "schedule=constant", "strides=[1,2,2,2,2]",
        "data.workers=1", processes=2,
    )  # fmt: skip
    (result,) = (json.loads(path.read_text()) for path in tmp_path.glob("runs/*/*/result.json"))
    assert (result["count"], result["unreadable"]) == (10, 0)
    assert result["hardware"]["processes"] == 2
    assert result["decoder"] == native.description()


def test_names_that_are_not_utf8_pipes_and_wide_formats(photo_folder: Path, tmp_path: Path) -> None:
    """Stored as they are, shown with escapes, left out if asked; nothing waits for a pipe."""
    flowers = photo_folder / "train" / "flower"
    os.rename(flowers / "0.jpg", os.fsencode(flowers) + b"/g\xfct.jpg")
    with open(os.fsencode(flowers) + b"/b\xe4d.jpg", "wb") as file:
        file.write(b"nothing")
    os.mkfifo(flowers / "pipe.jpg")
    PIL.Image.fromarray(np.full((40, 40), 0x80FF, np.uint16)).save(flowers / "wide.png")
    PIL.Image.fromarray(np.ones((40, 40), np.float32)).save(flowers / "float.tif")
    (flowers / "notes.txt").touch()
    pack = tmp_path / "pack"
    with pytest.raises(InputError, match=r"b\\xe4d\.jpg: .*could not decode it.*on_bad_image=skip"):
        prepare(photo_folder, tmp_path / "error")
    (flowers / "._0.jpg").write_bytes(b"hidden")
    report = prepare(photo_folder, pack, on_bad_image="skip", mode="max_side", size=32)
    assert report["notes"] == ["train: files with these endings are not read: .txt (1)"]
    odd = report["train"]["odd"]
    assert odd["undecodable"] == ["flower/b\\xe4d.jpg", "flower/float.tif"]
    assert odd["unreadable"] == ["flower/pipe.jpg"]
    assert report["train"]["done"] == {
        "left out: undecodable": 2, "left out: unreadable": 1, "resized": 25,
    }  # fmt: skip
    assert "flower/pipe.jpg" in job._render(report, pack)
    images = image_folder(str(pack), reencoded=True).train
    assert isinstance(images, PackImages)
    names = [images.names[index] for index in range(len(images))]
    assert os.fsencode(names[names.index("flower/g\udcfct.jpg")]) == b"flower/g\xfct.jpg"
    wide = np.asarray(images[names.index("flower/wide.png")][0])
    assert np.unique(wide).tolist() == [128]
    again = prepare(photo_folder, pack, on_bad_image="skip", mode="max_side", size=32)
    assert again == report


def test_the_command_prints_names_that_are_not_utf8(
    run: Run, photo_folder: Path, tmp_path: Path
) -> None:
    flowers = os.fsencode(photo_folder / "train" / "flower")
    with open(flowers + b"/b\xe4d.jpg", "wb") as file:
        file.write(b"nothing")
    done = run(
        "scripts/prepare_imagenet.py", f"source={photo_folder}", "output=pack", "workers=2",
        "on_bad_image=skip",
    )  # fmt: skip
    assert "odd, undecodable: 1 (flower/b\\xe4d.jpg)" in done.stdout


def test_imagenet_of_parquet_files_by_words(tmp_path: Path) -> None:
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    from tests.data.archives import ONE_EACH, hub

    words = {split: list(_IMAGENET_CATEGORIES) for split in ("train", "validation")}
    root = hub(tmp_path / "hub", words, ONE_EACH)
    with pytest.raises(InputError, match="expected all of ImageNet-1k: train has 2 images"):
        prepare(root, tmp_path / "pack", classes="imagenet", on_bad_image="keep")
    report = prepare(root, tmp_path / "pack", on_bad_image="keep")
    assert report["source"]["kind"] == "Parquet"


@pytest.mark.parametrize(
    ("layouts", "message"),
    [
        ([Layout.IMAGENET_TARS], "img_train.tar: expected ImageNet's official tar, found none"),
        ([Layout.IMAGENET_TARS, Layout.WEBDATASET], "img_train.tar: expected ImageNet's official"),
        ([Layout.IMAGENET_TARS, Layout.CLASS_FOLDERS], "val: expected a folder with one folder"),
        ([Layout.WEBDATASET, Layout.CLASS_FOLDERS], "expected the end marker of a tar"),
        ([Layout.PACK], r"source=.*: expected the folders train and val, or .* found none of them"),
        ([], r"source=.*: expected the folders train and val, or .* found none of them"),
    ],
)
def test_packs_are_made_of_class_folders_rather_than_of_tars_beside_them(
    tmp_path: Path, layouts: list[Layout], message: str
) -> None:
    source = fill(tmp_path / "source", layouts)
    source.mkdir(exist_ok=True)
    with pytest.raises(InputError, match=message):
        prepare(source, tmp_path / "pack", mode="copy")
