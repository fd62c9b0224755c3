"""The learning curve of a run beside those of the authors' released log."""

import csv
import io
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mobilenext.config.fields import MISSING, check, path_field, path_list
from mobilenext.errors import InputError
from mobilenext.files import check_output_file, writable, write_whole
from mobilenext.program import as_typed
from mobilenext.runtime.distributed import Process
from mobilenext.tables import (
    ReleasedCurve,
    fraction,
    images_per_norm,
    released_curves,
    released_recipe,
    tag_meanings,
)
from mobilenext.training.progress import say
from mobilenext.training.run_folder import RunFolder


@dataclass
class CompareCurveConfig:
    """Job `compare_curve`."""

    runs: list[str] = path_list(MISSING, positional=True, runs=True)
    """Run folders, finished or not."""
    output: str | None = path_field(None)
    """CSV file that gets the points; null: only printed."""
    force: bool = False
    """Compare runs of another network, data or recipe than the log's as well."""

    def __post_init__(self) -> None:
        check(bool(self.runs), "runs", "at least one run folder", self.runs)


KNOBS = ("_target_", "width_mult", "identity_tensor_multiplier", "dropout", "strides")
"""Arguments of the network that are compared under other names, or cannot differ."""


def compare_curve(config: CompareCurveConfig, process: Process) -> dict[str, Any]:
    """Print each run's top-1 at the epochs that the released log is known for.

    Args:
        config: The job's config.
        process: This process.

    Returns:
        `rows`, by run: epoch (from 1), the log's top-1, ours, difference, in per cent.

    Raises:
        InputError: A run is not there, has no whole epoch yet, or does not compare with the log, or
            the file can't be written.
    """
    output = None if config.output is None else Path(config.output)
    if output is not None:
        check_output_file("output", output)
    rows: dict[str, list[tuple[int, float, float, float]]] = {}
    for path in map(Path, config.runs):
        settings, history, processes = _read(path)
        log = _log_for(float(settings["identity"]))
        problem = _mismatch(settings, processes, log)
        if problem and not config.force:
            raise InputError(
                f"{path}: {problem}, and the log is of MobileNeXt 1.0 on ImageNet at 224 px with "
                "the recipe of experiment=mobilenext_official: the curves can't be compared; "
                "force=true does it all the same"
            )
        rows[str(path)] = _rows(log, history)
        say(_text(path, problem, log, rows[str(path)], len(history)), process)
    if output is not None:
        _write(output, rows)
        say(f"written to {output}", process)
    return {"rows": rows}


def _read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], int | None]:
    """Config, history and number of processes of a run, finished or not."""
    run = RunFolder(path.parent if path.name == "result.json" else path)
    try:
        result = run.result()
        if result is not None and "history" in result:
            processes = result.get("hardware", {}).get("processes")
            return result["config"], _evaluated(result["history"]), processes
        settings = yaml.safe_load((run.path / "config.yaml").read_text())
        history = _evaluated(run.history())
        processes = _processes(run)
    except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
        raise InputError(
            f"{path}: expected the folder of a run, with config.yaml and metrics.jsonl ({error})"
        ) from error
    if not history:
        raise InputError(f"{path}: the run has not ended an epoch yet")
    return settings, history, processes


def _processes(run: RunFolder) -> int | None:
    """The number of processes that the newest session of a run has; None if none is noted."""
    if not run.sessions.exists():
        return None
    processes = None
    for line in run.sessions.read_text().splitlines():
        with suppress(ValueError):  # a line that is being written
            processes = json.loads(line).get("processes", processes)
    return processes


def _log_for(identity: float) -> ReleasedCurve:
    """The released run with this identity tensor multiplier, or the one with 1."""
    logs = {log.identity: log for log in released_curves()}
    return logs.get(identity, logs[1.0])


def _mismatch(settings: dict[str, Any], processes: int | None, log: ReleasedCurve) -> str:
    """What sets a run apart from the released ones, in words: network, data, recipe, norms."""
    data = settings["data"]
    found = []
    if settings["model"]["name"] != "mobilenext" or settings["width"] != 1.0:
        found.append(f"{settings['model']['name']} {settings['width']:g}")
    if data["name"] != "imagenet" or data.get("reencoded"):
        found.append(f"data {data['name']}" + (" encoded anew" if data.get("reencoded") else ""))
    if {data["image_size"], data["eval_size"]} != {224}:
        found.append(f"{data['image_size']} px")
    if float(settings["identity"]) != log.identity:
        logs = ", ".join(fraction(one.identity) for one in released_curves())
        this = fraction(float(settings["identity"]))
        found.append(f"identity {this}, for which no log was released (there are {logs})")
    for place, value in released_recipe().items():
        ours = _value(settings, place)
        if ours != value:
            found.append(f"{place}={as_typed(ours)} (released run: {as_typed(value)})")
    for name, value in settings["model"]["network"].items():
        if name not in KNOBS:
            found.append(f"model.network.{name}={as_typed(value)} (released run: none)")
    images = images_per_norm(settings, processes)
    if images not in (None, log.images_per_norm):
        found.append(f"images per norm={images} (released run: {log.images_per_norm})")
    return f"this is {', '.join(found)}" if found else ""


def _value(settings: dict[str, Any], place: str) -> Any:
    """The value at a place such as optimizer.lr; None if there is none."""
    value: Any = settings
    for name in place.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _evaluated(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [epoch for epoch in history if "val" in epoch]


def _rows(
    log: ReleasedCurve, history: list[dict[str, Any]]
) -> list[tuple[int, float, float, float]]:
    ours = {epoch["epoch"]: epoch["val"]["top1"] for epoch in history}
    return [
        (epoch + 1, top1, ours[epoch + 1], ours[epoch + 1] - top1)
        for epoch, _, top1 in log.points
        if epoch + 1 in ours
    ]


def _text(
    path: Path,
    problem: str,
    log: ReleasedCurve,
    rows: list[tuple[int, float, float, float]],
    epochs: int,
) -> str:
    lines = [f"{path}, {epochs} epochs so far"]
    if problem:
        lines.append(f"NOT comparable: {problem}")
    lines.append(f"{'epoch':>6}{'released log':>15}{'ours':>9}{'difference':>13}")
    lines += [f"{e:>6}{a:>15.2f}{b:>9.2f}{d:>+13.2f}" for e, a, b, d in rows]
    lines += [
        "Top-1 in per cent on the validation images; epochs count from 1, the log's own from 0.",
        f"Released log: MobileNeXt 1.0, identity {fraction(log.identity)} "
        f"[{log.tag}: {tag_meanings()[log.tag]}], {log.source}.",
    ]
    return "\n".join(lines)


def _write(path: Path, rows: dict[str, list[tuple[int, float, float, float]]]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("run", "epoch", "released_top1", "top1", "difference"))
    for run, points in rows.items():
        table.writerows([(run, *point) for point in points])
    with writable(f"output={path}"):
        write_whole(path, text.getvalue())
