"""Tables of what becomes of networks after training: 8 bits, and latency."""

import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mobilenext.files import printable
from mobilenext.program import fraction
from mobilenext.tables.cells import footnotes
from mobilenext.tables.labels import labels
from mobilenext.tables.paper_tables import named_table
from mobilenext.tables.render import Table
from mobilenext.tables.results import decimal

UNKNOWN_PROTOCOL = (
    "The paper's protocol is not known: whether weights had a scale for each channel or each "
    "layer, on which grid, how ranges were found and on how many images."
)
REFERENCE = (
    "Reference arithmetic: values rounded to 8 bits, sums in float32; what integer runtimes give "
    "depends on the processor, see its instructions."
)
COMPARED = ("mobilenetv2", "mobilenext")
"""Families of which the paper says that the second loses less."""


@dataclass(frozen=True)
class Lost:
    """What 8 bits cost one network: several seeds of one way."""

    first: dict[str, Any]
    """The result of one of them."""
    row: dict[str, Any]
    """Its row, or file."""
    rows: tuple[dict[str, Any], ...]
    floats: tuple[float, ...]
    """Top-1 in float, in per cent, one for each seed."""

    @property
    def drop(self) -> float:
        """Mean drop, in points."""
        return statistics.fmean(one["drop"] for one in self.rows)

    @property
    def error(self) -> float:
        """Of the drop: spread over the seeds, or that of one pair of answers."""
        drops = [one["drop"] for one in self.rows]
        return statistics.stdev(drops) if len(drops) > 1 else self.rows[0]["drop_std_error"]

    def mean(self, key: str) -> float:
        """Of an entry of the rows."""
        return statistics.fmean(one[key] for one in self.rows)


def way_of(row: dict[str, Any]) -> str:
    """How a row was taken to 8 bits, in words."""
    extras = [
        words
        for words, holds in (
            ("equalised", row.get("equalized")),
            ("biases corrected", row.get("bias_corrected")),
            (f"{row.get('finetune_steps')} steps trained", row.get("finetune_steps")),
            ("dead channels as they are", row.get("dead_zeroed") is False),
            (f"float: {', '.join(row.get('keep_float') or [])}", row.get("keep_float")),
        )
        if holds
    ]
    first = f"weights {row['weights'].replace('_', ' ')} {row['grid']}, {row['observer']}"
    return ", ".join([first, *extras])


def _task(result: dict[str, Any]) -> tuple[Any, ...]:
    return (
        result["data"], result["image_size"], result["float"]["count"],
        result["calibration"]["images"],
    )  # fmt: skip


def quantization_tables(results: Sequence[dict[str, Any]]) -> list[Table]:
    """8 bits after training: one table for each data set, the paper's in its own.

    Args:
        results: Of `scripts/quantize.py`.
    """
    detectors = [one for one in results if one.get("task") == "detection"]
    results = [one for one in results if one.get("task") != "detection"]
    tables = _detector_tables(detectors)
    for task in sorted({_task(one) for one in results}, key=str):
        part = [one for one in results if _task(one) == task]
        lost = list(_lost(part))
        rows = [_lost_row(one) for one in lost] + list(_differences(lost))
        data, size, count, images = task
        slug = re.sub(r"[^a-z0-9]+", "_", f"{data}_{size}_{images}".lower())
        seeds = any(len(one.rows) > 1 for one in lost)
        remarks = (
            REFERENCE,
            "± of a drop: standard deviation over the seeds, or, with one, of the difference "
            "between answers to the same images." if seeds else
            "± of a drop: of the difference between answers to the same images.",
            f"Ranges of activations on {images} training images; agreement: images with the float "
            "network's answer; SQNR: of the logits.",
            UNKNOWN_PROTOCOL,
        )  # fmt: skip
        tables.append(
            Table(
                f"int8_{slug}",
                f"8 bits after training: {printable(data)}, {size} px, {count:,} images",
                ("network", "how", "seeds", "float top-1", "8-bit top-1", "drop, points",
                 "agreement, %", "SQNR, dB"),
                tuple(rows), footnotes([], set(), *remarks), 2, "8 bits",
            )
        )  # fmt: skip
    return tables


DETECTED = {"ap_voc_11point": "AP (VOC, 11 points)", "ap_coco": "AP (COCO)"}


def _detector_tables(results: Sequence[dict[str, Any]]) -> list[Table]:
    """Detectors at 8 bits: one table for each data set, by the measure that it is known by."""
    tables = []
    for task in sorted({(*_task(one), one["measure"]) for one in results}, key=str):
        rows = []
        for one in results:
            if (*_task(one), one["measure"]) != task:
                continue
            measure = one["measure"]
            name = f"{network_label(one)}, {printable(str(one['detector']))}"
            for row in [*one["rows"], *one["files"]]:
                how = way_of(row) if "grid" in row else f"file {printable(str(row.get('file')))}"
                rows.append((
                    name, how, f"{one['float'][measure]:.2f}", f"{row[measure]:.2f}",
                    f"{row['drop']:.2f}".replace("-", "−"),
                ))  # fmt: skip
        data, size, count, images, measure = task
        words = DETECTED.get(measure, printable(measure))
        slug = re.sub(r"[^a-z0-9]+", "_", f"{data}_{size}_{images}".lower())
        tables.append(
            Table(
                f"int8_detection_{slug}",
                f"8 bits after training, detectors: {printable(data)}, {size} px, {count:,} images",
                ("detector", "how", f"float {words}", f"8-bit {words}", "drop, points"),
                tuple(rows),
                footnotes([], set(), REFERENCE, "Softmax and decoding stay in float; AP on few "
                          "images moves by a point by chance."),
                2, "8 bits",
            )
        )  # fmt: skip
    return tables


def _lost(results: Iterable[dict[str, Any]]) -> Iterator[Lost]:
    found: dict[tuple[Any, ...], list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for result in results:
        network = (result["model"], result["width"] or 0, result["identity"] or 1)
        for row in result["rows"]:
            found.setdefault((way_of(row), *network), []).append((result, row))
    order = sorted(found, key=lambda key: (key[0], labels().place(key[1]), -key[2], -key[3]))
    for key in order:
        mine = found[key]
        yield Lost(
            mine[0][0], mine[0][1], tuple(row for _, row in mine),
            tuple(result["float"]["top1"] for result, _ in mine),
        )  # fmt: skip


def network_label(result: dict[str, Any]) -> str:
    """A network in a row: family, width, identity tensor multiplier."""
    words = [labels().label(result["model"])]
    if result.get("width"):
        words.append(decimal(result["width"]))
    if (result.get("identity") or 1) != 1:
        words.append(f"identity {fraction(result['identity'])}")
    return ", ".join([" ".join(words[:2]), *words[2:]])


def _lost_row(one: Lost) -> tuple[str, ...]:
    top1 = statistics.fmean(one.floats)
    return (
        network_label(one.first), way_of(one.row), str(len(one.rows)), f"{top1:.2f}",
        f"{one.mean('top1'):.2f}", f"{one.drop:.2f} ± {one.error:.2f}".replace("-", "−"),
        f"{one.mean('agreement'):.2f}", f"{one.mean('sqnr_db'):.1f}",
    )  # fmt: skip


def _differences(lost: Sequence[Lost]) -> Iterator[tuple[str, ...]]:
    """What MobileNeXt keeps more than MobileNetV2, at one width and by one way."""
    base, other = COMPARED
    for mine in lost:
        if mine.first["model"] != other or (mine.first["identity"] or 1) != 1:
            continue
        for peer in lost:
            if peer.first["model"] == base and (way_of(peer.row), peer.first["width"]) == (
                way_of(mine.row), mine.first["width"],
            ):  # fmt: skip
                kept = f"{peer.drop - mine.drop:+.2f}".replace("-", "−")
                name = f"{labels().label(other)} keeps more, {decimal(mine.first['width'])}"
                yield (name, way_of(mine.row), "", "", "", kept, "", "")


def published_quantization() -> Table:
    """What the paper says of 8 bits."""
    return named_table(
        "int8_paper", "8 bits after training: the paper, ImageNet at 224 px", "quantization",
        {"network": "", "float top-1": "float_top1", "8-bit top-1": "int8_top1"}, UNKNOWN_PROTOCOL,
    )  # fmt: skip


def published_latency() -> Table:
    """Ranges of latency that were published, of a Pixel 4."""
    return named_table(
        "latency_paper", "Latency: the authors' README, Pixel 4", "latency_ranges",
        {"network, engine, device": "", "ms, from": "from", "to": "to"},
    )  # fmt: skip


def latency_tables(results: Sequence[dict[str, Any]]) -> list[Table]:
    """Latency: one table for each device, number of threads and engine.

    Args:
        results: Of `scripts/latency.py`; each is a table of its own, or several, since times of
            different commands were not measured in turns.
    """
    tables = []
    names: dict[str, int] = {}
    for result in results:
        for engine in dict.fromkeys(row["engine"] for row in result["rows"]):
            rows = [row for row in result["rows"] if row["engine"] == engine]
            device = printable(result["device"])
            slug = re.sub(r"[^a-z0-9]+", "_", f"{device}_{engine}".lower()).strip("_")[:60]
            names[slug] = names.get(slug, 0) + 1
            again = f"_{names[slug]}" if names[slug] > 1 else ""
            tables.append(_latency_table(f"latency_{slug}{again}", device, engine, rows, result))
    return tables


def _latency_table(
    name: str, device: str, engine: str, rows: Sequence[dict[str, Any]], result: dict[str, Any]
) -> Table:
    version = printable(str(rows[0].get("engine_version", "")))
    threads = result["threads"]
    set_ = result.get("instructions") or {}
    cpu = f", {set_['vector']}" if set_.get("vector") else ""
    baselines = {row["baseline"] for row in rows if row.get("baseline")}
    remarks = [
        f"{result['rounds']} rounds in turns, batch {result['batch']}; ratios within a round, "
        f"of {result.get('ratios_of', 'wall time')}, with their quartiles; not resolved: these "
        "hold 1.",
        *(f"Ratios are to {printable(baseline)}." for baseline in sorted(baselines)),
    ]
    if any(row.get("is_bound") for row in rows):
        remarks.append(
            "Without shortcuts: no network to be used, but the most that an identity tensor "
            "multiplier could gain."
        )
    shares = sorted(
        {round(100 * row["busy_share"]) for row in rows if row.get("busy_share") is not None}
    )
    if shares:
        least = f"{shares[0]} to " if len(shares) > 1 else ""
        remarks.append(
            f"The candidates had their core{'s' if threads > 1 else ''} for {least}{shares[-1]} % "
            "of the time."
        )
    return Table(
        name,
        f"Latency: {device}{cpu}, {printable(engine)} {version}, {threads} thread"
        f"{'s' if threads > 1 else ''}",
        ("network", "px", "ms, median", "quartiles", "ratio", "quartiles", "peak MB"),
        tuple(_latency_row(row) for row in rows), footnotes([], set(), *remarks), 1, "latency",
    )  # fmt: skip


def _latency_row(row: dict[str, Any]) -> tuple[str, ...]:
    ratio, ms, peak = row["ratio"], row["ms"], row.get("peak_bytes")
    words = "baseline" if ratio is None else f"{ratio['median']:.3f}"
    if ratio is not None and not row["resolved"]:
        words += ", not resolved"
    return (
        printable(row["label"]), str(row["image_size"]), f"{ms['median']:.2f}",
        f"{ms['q1']:.2f}–{ms['q3']:.2f}", words,
        "" if ratio is None else f"{ratio['q1']:.3f}–{ratio['q3']:.3f}",
        "" if peak is None else f"{peak / 1e6:.0f}",
    )  # fmt: skip


@dataclass(frozen=True)
class Bar:
    """A horizontal bar of a page, in per cent of the widest."""

    name: str
    text: str
    start: float
    length: float
    middle: float | None = None
    """Place of a mark, in per cent."""


@dataclass(frozen=True)
class Bars:
    """Bars below each other, under a title."""

    title: str
    bars: tuple[Bar, ...]
    note: str = ""


MOST_BARS = 10


def error_bars(results: Sequence[dict[str, Any]]) -> list[Bars]:
    """Error by layer of each row of each result: the worst layers, as noise in dB below signal."""
    found = []
    for result in results:
        for row in result["rows"]:
            worst = sorted(row["layers"], key=lambda layer: layer["sqnr_db"])[:MOST_BARS]
            if not worst:
                continue
            share = [100 * 10 ** (-layer["sqnr_db"] / 20) for layer in worst]
            most = max(share)
            found.append(
                Bars(
                    f"Error by layer: {network_label(result)}, {way_of(row)}"
                    + _seed_words(result),
                    tuple(
                        Bar(printable(layer["name"]),
                            f"{one:.1f} % ({layer['sqnr_db']:.1f} dB)", 0.0, 100 * one / most)
                        for layer, one in zip(worst, share, strict=True)
                    ),
                    f"The {len(worst)} worst of {len(row['layers'])} layers: error of a layer's "
                    "output as a share of its size, root mean square, with all that the layers "
                    "before it add.",
                )
            )  # fmt: skip
    return found


def _seed_words(result: dict[str, Any]) -> str:
    seed = result.get("trained_seed")
    return "" if seed is None else f", seed {seed}"


def latency_bars(results: Sequence[dict[str, Any]]) -> list[Bars]:
    """Ratios of each result and engine as intervals between their quartiles."""
    found = []
    for result in results:
        for engine in dict.fromkeys(row["engine"] for row in result["rows"]):
            rows = [row for row in result["rows"] if row["engine"] == engine and row["ratio"]]
            if not rows:
                continue
            low = min(0.95, *(row["ratio"]["q1"] for row in rows))
            high = max(1.05, *(row["ratio"]["q3"] for row in rows))

            def place(value: float, low: float = low, high: float = high) -> float:
                return 100 * (value - low) / (high - low)

            bars = tuple(
                Bar(
                    printable(row["label"]),
                    f"{row['ratio']['median']:.3f}" + ("" if row["resolved"] else " not resolved"),
                    place(row["ratio"]["q1"]),
                    place(row["ratio"]["q3"]) - place(row["ratio"]["q1"]),
                    place(1.0),
                )
                for row in rows
            )
            found.append(
                Bars(
                    f"Time relative to the baseline: {printable(result['device'])}, "
                    f"{printable(engine)}",
                    bars,
                    f"Scale {low:.2f} to {high:.2f}; bars: the ratio to "
                    f"{printable(str(rows[0]['baseline']))}, from its first to its third quartile; "
                    "the line is 1, as fast. Not resolved: the bar crosses it.",
                )
            )
    return found
