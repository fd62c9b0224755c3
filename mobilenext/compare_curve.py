"""The learning curve of a run beside those of the authors' released log."""

import csv
import io
from pathlib import Path
from typing import Any

import yaml

from mobilenext.config import CompareCurveConfig
from mobilenext.errors import InputError
from mobilenext.runtime.distributed import Process
from mobilenext.runtime.files import write_atomically
from mobilenext.runtime.monitor import say
from mobilenext.runtime.run_folder import RunFolder
from mobilenext.tables import ReleasedCurve, fraction, released_curves, tag_meanings


def compare_curve(
    config: CompareCurveConfig, process: Process, folder: RunFolder
) -> dict[str, Any]:
    """Print each run's top-1 at the epochs of which the released log is known.

    Args:
        config: The job's config.
        process: This process.
        folder: Not used.

    Returns:
        `rows`, by run: epoch (from 1), the log's top-1, ours, difference, in per cent.

    Raises:
        InputError: A run is not there, has no whole epoch yet, or does not compare with the log.
    """
    del folder
    rows: dict[str, list[tuple[int, float, float, float]]] = {}
    for path in (Path(text).expanduser() for text in config.runs):
        settings, history = _read(path)
        log = _log_for(float(settings["identity"]))
        problem = _mismatch(settings)
        if problem and not config.force:
            raise InputError(
                f"{path}: {problem}, and the log is of MobileNeXt 1.0 on ImageNet at 224 px: the "
                "curves can't be compared; force=true does it all the same"
            )
        rows[str(path)] = _rows(log, history)
        say(_text(path, problem, log, rows[str(path)], len(history)), process)
    if config.output is not None:
        _write(Path(config.output).expanduser(), rows)
        say(f"written to {config.output}", process)
    return {"rows": rows}


def _read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Config and history of a run, finished or not."""
    run = RunFolder(path.parent if path.name == "result.json" else path)
    try:
        result = run.result()
        if result is not None and "history" in result:
            return result["config"], result["history"]
        settings = yaml.safe_load((run.path / "config.yaml").read_text())
        history = [epoch for epoch in run.history() if "val" in epoch]
    except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
        raise InputError(
            f"{path}: expected the folder of a run, with config.yaml and metrics.jsonl ({error})"
        ) from error
    if not history:
        raise InputError(f"{path}: the run has not ended an epoch yet")
    return settings, history


def _log_for(identity: float) -> ReleasedCurve:
    """The released run with this identity tensor multiplier, or the one with 1."""
    logs = {log.identity: log for log in released_curves()}
    return logs.get(identity, logs[1.0])


def _mismatch(settings: dict[str, Any]) -> str:
    """What sets a run apart from the released ones, in words."""
    data = settings["data"]
    found = []
    if settings["model"]["name"] != "mobilenext" or settings["width"] != 1.0:
        found.append(f"{settings['model']['name']} {settings['width']:g}")
    if data["name"] != "imagenet" or data.get("reencoded"):
        found.append(f"data {data['name']}" + (" encoded anew" if data.get("reencoded") else ""))
    if {data["image_size"], data["eval_size"]} != {224}:
        found.append(f"{data['image_size']} px")
    return f"this is {', '.join(found)}" if found else ""


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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(text.getvalue().encode()))
    except OSError as error:
        raise InputError(f"output={path}: can't write there ({error})") from error
