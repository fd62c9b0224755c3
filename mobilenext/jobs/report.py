"""A page about runs: tables, plots, learning curves, speed, configs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilenext.config.fields import path_field, path_list
from mobilenext.errors import InputError
from mobilenext.files import write_atomically
from mobilenext.runtime.distributed import Process
from mobilenext.tables import measured_results, read_results
from mobilenext.training.monitor import say


@dataclass
class ReportConfig:
    """Job `report`."""

    runs: list[str] = path_list(positional=True)
    """Run folders, folders of such, or result.json files; none: those that came with the source."""
    output: str = path_field("report.html")
    """The page."""
    title: str = "MobileNeXt: runs beside the paper"


def report(config: ReportConfig, process: Process) -> dict[str, Any]:
    """Write the page.

    Args:
        config: The job's config.
        process: This process.

    Returns:
        `output`, the page's path, and `runs`, how many it tells of.

    Raises:
        InputError: A path has no results, results contradict each other, the plotting library is
            not there, or the page can't be written.
    """
    try:
        from mobilenext.tables.page import render_page
    except ModuleNotFoundError as error:
        raise InputError(f"the report needs {error.name}: pip install -e '.[report]'") from error
    paths = [Path(path).expanduser() for path in config.runs]
    results = read_results(paths) if paths else measured_results()
    page = render_page(results, config.title)
    output = Path(config.output).expanduser()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, lambda file: file.write(page.encode()))
    except OSError as error:
        raise InputError(f"output={config.output}: can't write there ({error})") from error
    say(f"{output}: {len(results)} runs, {len(page) / 1e3:,.0f} kB", process)
    return {"output": str(output), "runs": len(results)}
