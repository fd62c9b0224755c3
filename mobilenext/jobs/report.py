"""A page about runs: tables, plots, learning curves, speed, configs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilenext.config.fields import path_field, path_list
from mobilenext.files import check_output_file, writable, write_whole
from mobilenext.runtime.distributed import Process
from mobilenext.tables import read_results
from mobilenext.tables.confusion import read_evaluations
from mobilenext.tables.plotting import plotting
from mobilenext.tables.results import (
    DETECTION,
    LATENCY,
    MEASURED,
    QUANTIZED,
    SEARCH,
    other_results,
)
from mobilenext.tables.searched import left_out
from mobilenext.training.progress import say


@dataclass
class ReportConfig:
    """Job `report`."""

    runs: list[str] = path_list(positional=True, runs=True)
    """Run folders, of evaluations as well, folders with run folders, or result.json files; none:
    the results that came with the source."""
    output: str = path_field("report.html")
    """HTML file to write."""
    title: str = "Training runs"


def report(config: ReportConfig, process: Process) -> dict[str, Any]:
    """Write the page.

    Args:
        config: The job's config.
        process: This process.

    Returns:
        `output`, the page's path, and `runs`, the number of runs on it.

    Raises:
        InputError: A path has no results, results contradict each other, the plotting library is
            not there, or the page can't be written.
    """
    with plotting("the report needs"):
        from mobilenext.tables.page import render_page
    output = Path(config.output)
    check_output_file("output", output)
    paths = [Path(path) for path in config.runs]
    evaluations = read_evaluations(paths)
    quantized, timed, detected, searched = (
        other_results(paths or [MEASURED], kind) for kind in (QUANTIZED, LATENCY, DETECTION, SEARCH)
    )
    others = bool(evaluations or quantized or timed or detected or searched)
    results = read_results(paths or [MEASURED], others)
    page = render_page(
        results, config.title, output.parent, evaluations, [*quantized.values()],
        [*timed.values()], detected, searched,
    )  # fmt: skip
    with writable(f"output={output}"):
        write_whole(output, page)
    found = f"{len(results)} run{'' if len(results) == 1 else 's'}"
    for count, word in (
        (len(detected), "detector"), (len(searched), "search"), (len(evaluations), "evaluation"),
        (len(quantized), "network"), (len(timed), "measurement"),
    ):  # fmt: skip
        what = {"network": " at 8 bits", "measurement": " of latency"}.get(word, "")
        plural = "es" if word == "search" else "s"
        if count:
            found += f", {count} {word}{plural if count > 1 else ''}{what}"
    for line in left_out(searched, results):
        say(line, process)
    say(f"{output}: {found}, {len(page) / 1e3:,.0f} kB", process)
    return {"output": str(output), "runs": len(results)}
