"""The last lines of a run: how it ended, and what is typed next. Loads no torch."""

import shlex
from pathlib import Path
from typing import Any

from mobilenext import program
from mobilenext.training.measures import measure_of


def already_finished(result: dict[str, Any], folder: Path, output_dir: str) -> str:
    """Lines about a run that needs no more training.

    Args:
        result: Its result.json.
        folder: Its run folder.
        output_dir: Folder of run folders, for the report.
    """
    used = result["hardware"]
    return (
        f"already finished: {_score(result)}(on {used['processes']} x "
        f"{used['device']}, {used['threads_per_process']} threads each)\n"
        f"run folder: {folder}\n"
        "to train again, give another seed or output_dir, or delete that folder\n"
        f"{next_commands(folder, output_dir, result.get('kind') != 'search')}"
    )


def _score(result: dict[str, Any]) -> str:
    """What the run was judged by, with a space behind."""
    measure = measure_of(result)
    return "" if measure is None else f"{measure.text(result[measure.key])} "


def next_commands(folder: Path, output_dir: str, answers: bool = True) -> str:
    """Commands of use after a run, as they are typed here.

    Args:
        folder: The run folder.
        output_dir: Folder of run folders, for the report.
        answers: Whether the run made a network that answers to pictures; a search does not.
    """
    run, best = shlex.quote(str(folder)), shlex.quote(str(folder / "best.pt"))
    board, report = _of_all_runs(output_dir)
    uses = (
        f"{program.command('predict')} {run} PICTURES",
        f"{program.command('export')} {run} output=exported",
    )
    evaluate = f"{program.command('evaluate')} checkpoint={best}"
    return _next(board, evaluate, *(uses if answers else ()), report)


def next_commands_of_sweep(output_dir: str) -> str:
    """Commands of use after a sweep, which compare its runs."""
    return _next(*_of_all_runs(output_dir))


def _of_all_runs(output_dir: str) -> tuple[str, str]:
    runs = shlex.quote(output_dir)
    return (
        f"{program.beside_python('tensorboard')} --logdir {runs}",
        f"{program.command('report')} {runs}",
    )


def _next(*commands: str) -> str:
    return "\n".join(["next:", *(f"  {command}" for command in commands)])
