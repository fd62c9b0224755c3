"""Tables from result.json files: measured numbers beside the paper's."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobilenext.config import ModelConfig
from mobilenext.config.fields import MISSING, path_field, path_list
from mobilenext.config.targets import build
from mobilenext.errors import InputError
from mobilenext.files import writable, write_whole
from mobilenext.models.complexity import measure_complexity
from mobilenext.runtime.distributed import Process
from mobilenext.tables import (
    Network,
    Result,
    Table,
    arguments_of,
    read_results,
    tables_of,
    to_csv,
    to_latex,
    to_markdown,
)
from mobilenext.tables.experiments import experiment_pages, overview
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
class TablesConfig:
    """Job `tables`."""

    runs: list[str] = path_list(positional=True, runs=True)
    """Run folders, folders with run folders, or result.json files; none: the results that came with
    the source. The word `paper` among them prints the paper on one page in place of tables: every
    experiment with its command, cost and state (a folder of that name is ./paper)."""
    paper: bool = False
    """Whether tables in which no run stands (the paper's, and that of costs) are printed as well;
    without `runs` they are in any case."""
    output: str | None = path_field(None)
    """Folder that gets each table, printed or not, as Markdown, CSV and LaTeX; null: none."""
    update: list[str] = path_list()
    """Markdown files whose tables are renewed: what lies between <!-- table: NAME --> and
    <!-- /table -->."""
    pictures: str | None = path_field(None)
    """Folder that gets the README's picture of accuracy over multiply-adds, accuracy-light.svg and
    accuracy-dark.svg; null: none."""
    width: float = 1.0
    """Width of the networks whose cost is counted."""
    identity: Any = 1.0
    """Their identity tensor multiplier."""
    strides: list[int] = MISSING
    """Strides of their five downsampling layers."""
    models: dict[str, ModelConfig] = field(default_factory=dict)
    """Networks whose cost is counted and stands in the tables, by name."""


MARKED = re.compile(r"<!-- table: (\S+) -->.*?<!-- /table -->", re.DOTALL)
ON_ONE_PAGE = "paper"
"""In place of a run: the paper on one page."""
FORMATS = {".md": to_markdown, ".csv": to_csv, ".tex": to_latex}


def tables(config: TablesConfig, process: Process) -> dict[str, Any]:
    """Print tables as Markdown, those of the runs first, or the paper on one page; write files.

    Args:
        config: The job's config.
        process: This process.

    Returns:
        `tables`, the Markdown of all tables by their names.

    Raises:
        InputError: A path has no results, results contradict each other, a network has no label,
            the plotting library is not there, or a file can't be written.
    """
    paths = [Path(path) for path in config.runs if path != ON_ONE_PAGE]
    kinds = (QUANTIZED, LATENCY, DETECTION, SEARCH)
    others = [other_results(paths or [MEASURED], kind) for kind in kinds]
    results = read_results(paths or [MEASURED], any(others))
    networks = [counted(model) for model in config.models.values()]
    built = tables_of(results, networks, *([*found.values()] for found in others))
    one_page = overview(built)
    every = [*built, one_page]
    rendered = {table.name: to_markdown(table) for table in every}
    rendered["experiments"] = experiment_pages(built)
    if len(paths) < len(config.runs):
        say(f"{rendered[one_page.name]}\n{rendered['experiments']}".rstrip(), process)
    else:
        _print(built, config.paper or not paths, process)
    for line in left_out(others[-1], results):
        say(f"\n{line}", process)
    if config.output is not None:
        output = Path(config.output)
        with writable(f"output={output}"):
            for table in every:
                for suffix, render in FORMATS.items():
                    write_whole(output / f"{table.name}{suffix}", render(table))
        say(f"\nwritten to {output}: {', '.join(table.name for table in every)}", process)
    if config.pictures is not None:
        _draw(Path(config.pictures), results)
    for name in config.update:
        _update(Path(name), rendered)
    return {"tables": rendered}


def _print(built: list[Table], everything: bool, process: Process) -> None:
    shown = [table for table in built if table.measured or everything]
    say("\n\n".join(to_markdown(table) for table in shown).rstrip(), process)
    not_shown = [table.name for table in built if table not in shown]
    if not_shown:
        say(
            "\nNot printed, as none of these runs stands in them (paper=true prints them too): "
            f"{', '.join(not_shown)}",
            process,
        )


def _draw(folder: Path, results: Sequence[Result]) -> None:
    with plotting("pictures need"):
        from mobilenext.tables.pictures import accuracy_pictures
    with writable(f"pictures={folder}"):
        for name, text in accuracy_pictures(results).items():
            write_whole(folder / name, text)


def counted(model: ModelConfig) -> Network:
    """A network's cost at 224 px with 1,000 classes."""
    cost = measure_complexity(build(model.network, num_classes=1000), 224)
    return Network(model.name, arguments_of(model.network), cost.params, cost.madds)


def renew(text: str, tables: dict[str, str]) -> str:
    """Markdown with its marked tables replaced.

    Args:
        text: Has <!-- table: NAME --> and <!-- /table --> around each table.
        tables: Markdown by name.

    Raises:
        InputError: There is no table of such a name.
    """

    def replace(found: re.Match[str]) -> str:
        name = found[1]
        if name not in tables:
            raise InputError(f"there is no table {name}: expected one of {', '.join(tables)}")
        return f"<!-- table: {name} -->\n{tables[name]}<!-- /table -->"

    return MARKED.sub(replace, text)


def _update(path: Path, tables: dict[str, str]) -> None:
    try:
        old = path.read_text()
    except OSError as error:
        raise InputError(f"update={path}: expected a Markdown file ({error})") from error
    new = renew(old, tables)
    if new != old:
        with writable(f"update={path}"):
            write_whole(path, new)
