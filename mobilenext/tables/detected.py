"""Tables of detectors, and what a page shows of them: curves by class, pictures with boxes."""

import base64
import json
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import yaml

from mobilenext.files import printable
from mobilenext.tables.cells import NOT_MEASURED, footnotes, mean_of, published_cell
from mobilenext.tables.labels import labels
from mobilenext.tables.paper import published_table
from mobilenext.tables.render import Table, superscript
from mobilenext.tables.results import decimal, protocol_text

TASK = "detection"

PROTOCOLS = (
    "AP in per cent; VOC: at IoU 0.5, difficult objects ignored, with VOC's +1 pixel, by 11 points "
    "(VOC2007) and by area (VOC2010); COCO: mean over IoU 0.50 to 0.95. They do not compare.",
)
SEEDS = "±: standard deviation over the seeds."
PAPERS_DATA, PAPERS_SIZE, PAPERS_IMAGES = "VOC07+12", 320, 4_952
PAPERS_EPOCHS = 348
"""Whole epochs of the authors' 240,000 steps of 24 images."""

MOST_FILE = 8 << 20
"""Bytes of a file that is shown in a page."""


@dataclass(frozen=True)
class Detected:
    """Runs of one detector, on one data set and by one recipe, that differ in their seeds only."""

    runs: tuple[dict[str, Any], ...]

    @property
    def first(self) -> dict[str, Any]:
        """The result with the smallest seed."""
        return self.runs[0]

    def text(self, key: str) -> str:
        """Mean of an entry in words, with its standard deviation where there are several seeds."""
        return mean_of([one[key] for one in self.runs])

    @property
    def network(self) -> str:
        """The detector in words: network, width, and which map at stride 16."""
        one = self.first
        name = labels().label(one["model"])
        width = "" if one["width"] == 1 else f" {decimal(one['width'])}"
        taps = "" if one["taps"] in ("authors", None) else ", expanded map at stride 16"
        parts = "" if one["detector"] == "ssdlite_authors" else f", {one['detector']}"
        return f"{printable(str(name))}{width}{taps}{parts}"

    @property
    def start(self) -> str:
        """What the backbone began as."""
        given, config = self.first.get("init_from"), self.first["config"]
        frozen = ", frozen" if config.get("freeze_backbone") else ""
        frozen += ", norms frozen" if config.get("freeze_norms") else ""
        if given is not None:
            return f"{printable(Path(given['path']).stem)} ({given['sha256'][:8]}){frozen}"
        published = config.get("model", {}).get("network", {}).get("pretrained") is True
        return f"published weights{frozen}" if published else "random weights"


def detected(results: Sequence[dict[str, Any]]) -> list[Detected]:
    """Results of `scripts/detect.py`, grouped by all but the seed."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in results:
        groups.setdefault(protocol_text(one, LEFT_OUT), []).append(one)
    found = [
        Detected(tuple(sorted(group, key=lambda one: one["seed"]))) for group in groups.values()
    ]
    return sorted(found, key=lambda one: (_task(one.first), -statistics.fmean(
        run["ap_voc_11point"] for run in one.runs)))  # fmt: skip


def detection_tables(results: Sequence[dict[str, Any]]) -> list[Table]:
    """Detectors: one table for each data set, size of images and number of epochs.

    Args:
        results: Of `scripts/detect.py`.
    """
    groups = detected(results)
    tables = []
    for task in dict.fromkeys(_task(group.first) for group in groups):
        part = [group for group in groups if _task(group.first) == task]
        one = part[0].first
        data, size, epochs, train, val = task
        rows = tuple(
            (
                group.network, group.start, str(len(group.runs)), group.text("ap_voc_11point"),
                group.text("ap_voc_area"), group.text("ap_coco"),
                f"{group.first['num_params'] / 1e6:.3f}", f"{group.first['madds'] / 1e6:.1f}",
            )
            for group in part
        )  # fmt: skip
        slug = re.sub(r"[^a-z0-9]+", "_", f"{data}_{size}_{epochs}".lower())
        if any(table.name == f"detection_{slug}" for table in tables):
            slug = f"{slug}_{train}_{val}"
        split = f"{train:,} + {val:,} images"
        remarks = [*PROTOCOLS]
        if any(len(group.runs) > 1 for group in part):
            remarks.append(SEEDS)
        if not one["split"]:
            what = "is no data set that others measure on: nothing published compares."
            remarks.append(f"{printable(data)} {what}")
        tables.append(
            Table(
                f"detection_{slug}",
                f"Detection: {printable(one['split'] or data)}, {size} px, {epochs} epochs, "
                f"{split}",
                ("detector", "backbone begins as", "seeds", "AP (VOC, 11 points)",
                 "AP (VOC, area)", "AP (COCO)", "params, M", "MAdds, M"),
                rows, footnotes([], set(), *remarks), 2, TASK,
            )
        )  # fmt: skip
    return tables


def published_detection(results: Sequence[dict[str, Any]]) -> Table:
    """The paper's detection row beside runs of ours on VOC07+12 at 320 px.

    Args:
        results: Of `scripts/detect.py`; those of other data stand in tables of their own.
    """
    ours = [group for group in detected(results) if all(map(_of_the_paper, group.runs))]
    ours.sort(key=lambda group: -len(group.runs))
    tags: set[str] = set()
    notes: list[str] = []
    rows = []
    for row in published_table(TASK):
        if "map_11point" not in row.numbers:
            continue
        cells = [
            "" if row.numbers.get(key) is None else published_cell(row.numbers[key], tags)
            for key in ("params", "madds", "map_11point")
        ]
        notes += [note for note in row.notes if note not in notes]
        marks = "".join(superscript(notes.index(note) + 1) for note in row.notes)
        rows.append((f"{row.name}{marks}", *cells, _beside(row.name, ours)))
    extra = "SSDLite320 with MobileNetV2, expanded map at stride 16"
    rows.append((extra, "", "", "", _beside(extra, ours)))
    return Table(
        "detection_paper",
        "Detection: the paper, VOC2007's test images, 320 px",
        ("detector", "params, M", "MAdds, M", "paper, AP (VOC, 11 points)",
         "ours, AP (VOC, 11 points)"),
        tuple(rows),
        footnotes(notes, tags, "Ours: from a trained classifier, 348 epochs or more of VOC07+12 "
                  "(16,551 images), tested on all 4,952 of VOC2007; nothing else stands here."),
        measured=bool(ours),
    )  # fmt: skip


def _of_the_paper(one: dict[str, Any]) -> bool:
    """Whether a run may stand beside the paper: its data, whole, as long as the authors' run."""
    return (
        one["split"] == PAPERS_DATA
        and one["image_size"] == PAPERS_SIZE
        and one["epochs"] >= PAPERS_EPOCHS
        and one.get("count") == PAPERS_IMAGES
        and not any(one.get("unreadable_images", {}).values())
        and one.get("init_from") is not None
    )


def _beside(name: str, ours: list[Detected]) -> str:
    """Our number in the row of a published one."""
    if "VGG" in name or "released" in name:
        return ""
    model = "mobilenext" if "MobileNeXt" in name else "mobilenetv2"
    taps = "expansion" if "expanded" in name else "authors"
    for group in ours:
        one = group.first
        same = (one["model"], one["taps"], one["width"]) == (model, taps, 1)
        if same and one["detector"] == "ssdlite_authors":
            return group.text("ap_voc_11point")
    return NOT_MEASURED


def _task(one: dict[str, Any]) -> tuple[Any, ...]:
    objects = one["objects"]
    return (one["data"], one["image_size"], one["epochs"], objects["train"]["images"],
            objects["val"]["images"])  # fmt: skip


LEFT_OUT = ("name", "output_dir", "seed", "checkpoint")
"""Entries of a config that runs of one row need not share."""


# ---- the page ----


@dataclass(frozen=True)
class DetectorView:
    """What a page shows of one run."""

    title: str
    curves: str
    """An <svg> of precision over recall, a small plot for each class; "": there are none."""
    picture: str
    """The sheet of test pictures as a data URI; "": there is none."""
    href: str
    """Link to the run's folder."""
    pace: str
    """Images per second, hardware and minutes of the training, in words."""
    command: str
    config: str
    """The run's config as YAML."""


def detector_views(
    files: dict[Path, dict[str, Any]], link: Callable[[Path], str]
) -> list[DetectorView]:
    """Curves and pictures of runs, from what lies beside their results.

    Args:
        files: Results of `scripts/detect.py` by their files.
        link: Makes a link to a folder.
    """
    views = []
    in_table = [one for group in detected([*files.values()]) for one in group.runs]
    for file, one in sorted(files.items(), key=lambda item: in_table.index(item[1])):
        run = Detected((one,))
        title = (
            f"{run.network} on {printable(one['data'])}, from {run.start}, seed {one['seed']}: "
            f"AP (VOC, 11 points) {one['ap_voc_11point']:.2f} %"
        )
        sheet = _read(file.parent / "detections.jpg")
        picture = f"data:image/jpeg;base64,{base64.b64encode(sheet).decode()}" if sheet else ""
        curves = _curves(_read(file.parent / "precision_recall.json"))
        config = yaml.safe_dump(one["config"], sort_keys=False, allow_unicode=True)
        views.append(
            DetectorView(title, curves, picture, link(file.parent), pace_of(one),
                         str(one.get("command", "")), config)
        )  # fmt: skip
    return views


def pace_of(one: dict[str, Any]) -> str:
    """Hardware, images per second and minutes of a training, in words."""
    hardware = one.get("hardware", {})
    device = hardware.get("accelerator") or hardware.get("cpu") or "unknown"
    parts = [f"{hardware.get('processes', 1)} × {printable(str(device))}"]
    if "images_per_second" in one:
        parts.append(f"{one['images_per_second']:,.0f} images/s")
    if "data_wait_share" in one:
        parts.append(f"waiting for data {one['data_wait_share']:.1%}")
    if "wall_seconds" in one:
        parts.append(f"{one['wall_seconds'] / 60:,.0f} minutes")
    return ", ".join(parts)


def _read(path: Path) -> bytes:
    """A file's content; empty if it is not there, or too large to be what a run leaves."""
    try:
        return path.read_bytes() if path.stat().st_size <= MOST_FILE else b""
    except OSError:
        return b""


SIDE, GAP, ABOVE, COLUMNS = 120, 26, 18, 5


def _curves(content: bytes) -> str:
    """Small plots of precision (up) over recall, both from 0 to 1, one for each class."""
    try:
        classes = json.loads(content)["classes"] if content else {}
        plots = [
            (str(name), one["ap_voc_11point"],
             [(float(x), float(y)) for x, y in zip(one["recall"], one["precision"], strict=True)])
            for name, one in list(classes.items())[:100]
        ]  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
    if not plots:
        return ""
    parts = []
    for number, (name, ap, points) in enumerate(plots):
        row, column = divmod(number, COLUMNS)
        left, top = column * (SIDE + GAP) + 4, row * (SIDE + GAP + ABOVE) + ABOVE
        shown = "no object" if ap is None else f"{ap:.1f} %"
        line = " ".join(f"{left + SIDE * x:.1f},{top + SIDE * (1 - y):.1f}" for x, y in points)
        parts.append(
            f'<text x="{left}" y="{top - 5}" font-size="11" fill="currentColor">'
            f"{escape(printable(name))} {shown}</text>"
            f'<rect x="{left}" y="{top}" width="{SIDE}" height="{SIDE}" fill="none" '
            'stroke="var(--lines)"/>'
            f'<polyline points="{line}" fill="none" stroke="var(--series-1)" stroke-width="1.5"/>'
        )
    rows = -(-len(plots) // COLUMNS)
    size = COLUMNS * (SIDE + GAP), rows * (SIDE + GAP + ABOVE)
    return (
        f'<svg viewBox="0 0 {size[0]} {size[1]}" role="img" '
        'aria-label="Precision over recall, by class">' + "".join(parts) + "</svg>"
    )
