"""From the command line to a job: config, processes, run folder, failures."""

import dataclasses
import io
import os
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from mobilenext import program
from mobilenext.config import (
    HasRun,
    LoopConfig,
    RuntimeConfig,
    is_text,
    is_text_list,
    is_word_list,
    register,
    typed,
)
from mobilenext.config.help import command_help
from mobilenext.config.hints import explained, is_about_the_command, refuse_hidden
from mobilenext.errors import InputError, Preempted, UserError
from mobilenext.files import printable
from mobilenext.program import folded, launched_by_torchrun
from mobilenext.runtime.cuda_driver import cuda_is_ruled_out
from mobilenext.runtime.signals import StopSignals
from mobilenext.runtime.srun import in_srun_step, join_srun_tasks
from mobilenext.sweeps.submitit_tasks import Requeued, in_submitit_task, make_importable
from mobilenext.sweeps.sweep import Sweep
from mobilenext.training.endings import already_finished
from mobilenext.training.run_folder import RunFolder

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = None if (PACKAGE / "configs").is_dir() else PACKAGE.parent
"""The checkout around the package; None: it is installed, with the configs inside."""
CONFIG_DIR = (CHECKOUT or PACKAGE) / "configs"

EXIT_PREEMPTED = 75
"""EX_TEMPFAIL of sysexits.h: not done, try again."""

Job = Callable[[Any, Any], dict[str, Any]]


def launch(load: Callable[[], Job], schema: type, config_name: str) -> None:
    """Run a job with the config that the command line describes.

    Composes `configs/<config_name>.yaml` with the overrides, turns it into its dataclass, joins the
    other processes if torchrun or srun started this one, and calls `job(config, process)`. What a
    user can fix is shown as one message on standard error; the exit code is then 1. After a signal
    that asked for the end it is 75: all is saved, run it again.

    Torch is loaded once the config is whole: a typo is answered at once.

    Args:
        load: Imports the function to run.
        schema: Its config's dataclass.
        config_name: Primary config in `configs/`.
    """
    _escape_output()
    join_srun_tasks()
    _read_arguments(schema)
    register(schema)
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.stdout.write(f"{_help(schema, config_name)}\n")
        return
    make_importable(CHECKOUT)
    script, started_as = sys.argv[0], program.started_as()
    failed_jobs = 0

    def main(composed: DictConfig) -> dict[str, Any] | None:
        nonlocal failed_jobs
        restore_full_error()
        try:
            config = typed(composed)
            result = _finished_before(config)
            if result is None:
                job = load()
                from mobilenext.execution import execute

                again = [script, *HydraConfig.get().overrides.task]
                result = execute(job, config, again, started_as)
            _obey_late_signal()
            return result
        except UserError as error:
            # The process group, if any, still stands (see `process_group`): the message of this
            # rank comes before those of others that lost it.
            show(error)
            if _sweeps_here():
                failed_jobs += 1  # the other jobs of the sweep go on
                return None
            raise exit_for(error) from None
        except Preempted as end:
            _say_preempted(*end.args)
            raise exit_for(end) from None
        except KeyboardInterrupt:
            sys.stderr.write("\ninterrupted\n")
            raise SystemExit(130) from None

    _through_hydra(main, config_name)
    failed_jobs += len(Sweep.failures)
    if failed_jobs:
        sys.stderr.write(f"{failed_jobs} of the sweep's jobs failed: see the errors above\n")
        raise SystemExit(1)


def _read_arguments(schema: type) -> None:
    """Check `sys.argv`, and write it as Hydra reads it; ends the process if it can't be."""
    try:
        _check_start()
        _refuse_spelling(sys.argv[1:])
        sys.argv[1:] = as_overrides(sys.argv[1:], schema)
        for added in _config_folders()[1:]:
            refuse_hidden(added, CONFIG_DIR)
    except InputError as error:
        show(error)
        raise SystemExit(1) from None


def _help(schema: type, config_name: str) -> str:
    """The text for `--help`, with the values that the other arguments give.

    Hydra's own names each key without saying what it means, and takes seconds for its list.
    """
    typed = sys.argv[1:]
    given = [
        text
        for place, text in enumerate(typed)
        if "=" in text and not text.startswith("-") and not _is_value(typed, place)
    ]
    folders = _config_folders()
    where = [f"hydra.searchpath=[{_quoted(f'file://{added.absolute()}')}]" for added in folders[1:]]
    try:
        with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            composed = hydra.compose(config_name, [*given, *where], return_hydra_config=True)
        return command_help(
            program.command(), composed.hydra.help.header, schema, composed, folders,
            min(100, shutil.get_terminal_size().columns),
        )  # fmt: skip
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if not is_about_the_command(error):
            raise
        show(InputError(f"{explained(error, given, folders)}\n--help alone lists all keys"))
        raise SystemExit(1) from None


def _config_folders() -> list[Path]:
    """Folders with configs: ours, and the one that the command adds."""
    added = _flag_value("--config-dir", "-cd")
    return [CONFIG_DIR, *([] if added is None else [Path(added)])]


def _flag_value(*names: str) -> str | None:
    """What is given to one of Hydra's flags, as --flag=VALUE or --flag VALUE."""
    for place, text in enumerate(sys.argv[1:], 1):
        flag, _, value = text.partition("=")
        if flag in names:
            return value or next(iter(sys.argv[place + 1 :]), None)
    return None


def _through_hydra(main: Callable[[DictConfig], Any], config_name: str) -> None:
    """Have Hydra compose the config, and call `main` with it, for each job of a sweep."""
    if launched_by_torchrun():
        from torch.distributed.elastic.multiprocessing.errors import record

        main = record(main)  # unexpected errors get into torchrun's summary
    composing = hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)
    wanted = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"  # Hydra then raises errors; it would print them with wrong advice
    os.environ[WANTED] = wanted or ""
    try:
        composing(main)()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if wanted == "1" or not is_about_the_command(error):
            raise
        restore_full_error()
        show(InputError(explained(error, sys.argv[1:], _config_folders())))
        raise SystemExit(1) from None
    finally:
        restore_full_error()


FULL_ERROR, WANTED = "HYDRA_FULL_ERROR", "MOBILENEXT_FULL_ERROR"
"""Whether Hydra shows tracebacks; and what it was before Hydra composed the config."""


def restore_full_error() -> None:
    """Give a job, and what it starts, the user's own HYDRA_FULL_ERROR."""
    wanted = os.environ.pop(WANTED, None)
    if wanted:
        os.environ[FULL_ERROR] = wanted
    elif wanted is not None:
        os.environ.pop(FULL_ERROR, None)


def _escape_output() -> None:
    """Print any text: names of files may be no UTF-8, and a terminal may know ASCII only."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _check_start() -> None:
    """Raise `InputError` if the command can't be run at all."""
    if not CONFIG_DIR.is_dir():
        raise InputError(
            f"found no configs in {CONFIG_DIR}: install the package again, or run in a checkout"
        )
    if {"-m", "--multirun"} & set(sys.argv[1:]):
        refuse_sweep_under_torchrun()


def as_overrides(arguments: list[str], schema: type) -> list[str]:
    """A command's arguments as Hydra reads them.

    Args:
        arguments: As typed.
        schema: The job's dataclass.

    Raises:
        InputError: There are bare arguments, and nothing takes them.
    """
    return flags_last(_spelled(positional_as_override(arguments, schema), schema))


TAKE_A_VALUE = ("--config-name", "-cn", "--config-path", "-cp", "--config-dir", "-cd", "--package",
                "-p", "--cfg", "-c", "--info", "-i", "--experimental-rerun")  # fmt: skip
"""Hydra's flags whose value is the next argument."""
MAY_TAKE_A_VALUE = ("--info", "-i")
"""Those of them that need none."""
SHOWN = ("job", "hydra", "all")
"""What --cfg shows."""


def _is_value(arguments: list[str], place: int) -> bool:
    """Whether an argument is the value of the flag in front of it."""
    flag = arguments[place - 1] if place else ""
    return flag in TAKE_A_VALUE and not (flag in MAY_TAKE_A_VALUE and "=" in arguments[place])


def flags_last(arguments: list[str]) -> list[str]:
    """Overrides, then flags with their values; in between, flags would end Hydra's overrides."""
    overrides, flags = [], []
    for place, text in enumerate(arguments):
        is_flag = text.startswith("-") or _is_value(arguments, place)
        (flags if is_flag else overrides).append(text)
    return [*overrides, *(text for text in flags if text != "--")]


def positional_as_override(arguments: list[str], schema: type) -> list[str]:
    """Arguments with the bare ones among them as overrides: runs=["a","b"], checkpoint="a".

    Args:
        arguments: As typed; one that exists as a path is a path, even with a `=` in it.
        schema: The job's dataclass. Its `positional` fields that have no override of their own take
            them in order: each but the last one path, the last one too unless it is a list.

    Raises:
        InputError: There are bare arguments, and nothing takes them.
    """
    fields = [item for item in dataclasses.fields(schema) if item.metadata.get("positional")]
    bare = []
    for place, text in enumerate(arguments):
        path = "=" not in text or (bool(fields) and os.path.exists(text))
        if path and not _is_value(arguments, place) and text[:1] not in ("-", "+", "~"):
            bare.append(place)
    if not bare:
        return arguments
    before = arguments[: bare[0]]  # the overrides go where the first one stood: flags may follow
    after = [text for place, text in enumerate(arguments) if place > bare[0] and place not in bare]
    given = {text.partition("=")[0].lstrip("+") for text in (*before, *after)}
    open_fields = [item for item in fields if item.name not in given]
    if not open_fields:
        raise _stray(arguments, bare[0])
    paths = [arguments[place] for place in bare]
    made = [f"{item.name}={_quoted(paths.pop(0))}" for item in open_fields[:-1] if paths]
    if paths:
        made.append(_taking(open_fields[-1], paths))
    return [*before, *made, *after]


def _taking(item: dataclasses.Field[Any], paths: list[str]) -> str:
    """The override with which a field takes paths."""
    if item.type is not str:
        return f"{item.name}=[{','.join(_quoted(path) for path in paths)}]"
    if len(paths) > 1:
        raise InputError(
            f"{item.name}: expected one path, got {len(paths)}: {shlex.join(paths)}; quote a path "
            f"with spaces, {shlex.quote(' '.join(paths))}, or run them one after the other, "
            f"-m {item.name}={shlex.quote(','.join(paths))}"
        )
    return f"{item.name}={_quoted(paths[0])}"


def _refuse_spelling(arguments: list[str]) -> None:
    """Raise `InputError` about keys that are written as other programs have them."""
    for place, text in enumerate(arguments):
        key, equals, value = text.lstrip("-").partition("=")
        if equals and not key and text != "=":
            raise InputError(f"argument {text!r}: expected key=value, got no key")
        if text.startswith("--") and key and key not in HYDRAS_FLAGS:
            following = arguments[place + 1 : place + 2]
            value = value or next((v for v in following if not v.startswith("-")), "VALUE")
            written = f"{key.replace('-', '_')}={shlex.quote(value)}"
            raise InputError(f"argument {text!r}: expected key=value, for instance {written}")
        _check_flag(arguments, place)
        if text == "=" and 0 < place < len(arguments) - 1:
            written = f"{arguments[place - 1]}={arguments[place + 1]}"
            raise InputError(f"argument '=': expected no spaces around it: {written}")
        numbers = text.partition("=")[2].split(",")
        if key == "width" and equals and len(numbers) == 2 and numbers[0] == "0":
            raise InputError(
                f"{text}: expected a decimal point, {key}=0.{numbers[1].removeprefix('0.')}; for "
                f"several values give -m and none that is 0"
            )


HYDRAS_FLAGS = ("help", "hydra-help", "version", "cfg", "resolve", "package", "run", "multirun",
                "shell-completion", "config-path", "config-name", "config-dir",
                "experimental-rerun", "info")  # fmt: skip
SHORT_FLAGS = ("-h", "-c", "-p", "-r", "-m", "-sc", "-cp", "-cn", "-cd", "-i")


def _check_flag(arguments: list[str], place: int) -> None:
    """Raise `InputError` about a flag that Hydra does not have, or that lacks its value."""
    text = arguments[place]
    flag, _, value = text.partition("=")
    if text[:1] != "-" or (text[:2] == "--" and flag not in TAKE_A_VALUE) or text == "-":
        return
    if flag not in (*SHORT_FLAGS, *TAKE_A_VALUE):
        raise InputError(f"argument {text!r}: expected key=value; --help lists the keys")
    if flag in TAKE_A_VALUE and flag not in MAY_TAKE_A_VALUE:
        value = value or next(iter(arguments[place + 1 :]), "")
        if flag in ("--cfg", "-c") and value not in SHOWN:
            raise InputError(f"{flag}: expected one of {', '.join(SHOWN)} behind it: {flag} job")
        if not value or value.startswith("-"):
            raise InputError(f"{flag}: expected its value behind it: {flag}=VALUE")


def _stray(arguments: list[str], place: int) -> InputError:
    """About an argument that is no override: perhaps the rest of a path with a space in it."""
    text = arguments[place]
    before = arguments[place - 1] if place else ""
    advice = f"for instance width={text}" if text.replace(".", "").isdigit() else "see --help"
    if "=" in before and before[:1] != "-":
        advice = f"quote a value with spaces: {shlex.quote(f'{before} {text}')}"
    return InputError(f"argument {text!r}: expected key=value, got no key; {advice}")


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '\\"') + '"'


def _spelled(arguments: list[str], schema: type) -> list[str]:
    """Arguments whose texts stay as they were typed.

    Hydra reads `output_dir=2024_10_01` as a number, which is then written without its underscores,
    and takes `=`, parentheses or a comma in a path for its own grammar. Where the key holds text,
    such values are quoted.
    """
    several = {"-m", "--multirun"} & set(arguments) or any(
        text.startswith(("experiment=", "hydra.mode=")) for text in arguments
    )
    spelled = []
    for text in arguments:
        key, equals, value = text.partition("=")
        is_override = equals and value and not text.startswith("-")
        if is_override and is_text(schema, key.lstrip("+")):
            spelled_value = _as_text(value, bool(several))
            one_of_a_list = is_text_list(schema, key.lstrip("+")) and value[0] not in "[$"
            if one_of_a_list and value not in ("null", "???") and not several:
                in_words = is_word_list(schema, key.lstrip("+"))
                spelled_value = _as_text(f"[{value}]", False) if in_words else f"[{spelled_value}]"
            text = f"{key}={spelled_value}"
        spelled.append(text)
    return spelled


def _as_text(value: str, several: bool) -> str:
    """A value of a text key in Hydra's grammar.

    Args:
        value: As typed.
        several: Whether commas separate the values of a sweep.
    """
    if value in ("null", "???") or value[0] in "'\"":
        return value
    inside = value[1:-1] if value[0] == "[" and value[-1] == "]" else None
    if inside is not None or (several and "," in value):
        parts = (value if inside is None else inside).split(",")
        if any(mark in part for part in parts for mark in "'\"[]{}()"):
            return value
        joined = ",".join(_as_text(part, several=False) if part else part for part in parts)
        return joined if inside is None else f"[{joined}]"
    try:
        parsed = OverridesParser.create().parse_override(f"key={value}")
        stays = not parsed.is_sweep_override() and not isinstance(
            parsed.value(), int | float | list | dict
        )
    except HydraException:
        stays = False
    return value if stays or (several and "(" in value) else _quoted(value)


def refuse_sweep_under_torchrun() -> None:
    """Raise `InputError` if torchrun or srun started this process, which wants to start others."""
    if launched_by_torchrun() and "SUBMITIT_EXECUTOR" not in os.environ:
        given = [text for text in sys.argv[1:] if text not in ("-m", "--multirun")]
        processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
        under, alone = "under torchrun", "without torchrun"
        if in_srun_step():
            under, alone = "as several tasks of srun", "as one task"
        raise InputError(
            f"a sweep (-m) can't run {under}: its second job would meet the rendezvous "
            f"of the first. Start the sweep {alone}, it starts torchrun for each job: "
            f"{program.command()} -m hydra/launcher=torchrun "
            f"hydra.launcher.processes={processes} {shlex.join(given)}"
        )


def _finished_before(config: Any) -> dict[str, Any] | None:
    """The result of a training run that is finished, told without loading torch.

    None where there is none, or where only torch knows which folder is the run's: the default
    precision, which is part of the folder's name, is another on CUDA.
    """
    trains = isinstance(config, LoopConfig) and config.leaves_run
    if not trains or launched_by_torchrun() or in_submitit_task():
        return None
    precision = _known_precision(config.runtime)
    if precision is None:
        return None
    runtime = dataclasses.replace(config.runtime, precision=precision)
    folder = RunFolder(dataclasses.replace(config, runtime=runtime).run_path)
    result = folder.result()
    if result is not None:
        sys.stdout.write(f"{already_finished(result, folder.path, config.output_dir)}\n")
    return result


def _known_precision(runtime: RuntimeConfig) -> str | None:
    """The precision that is computed in; None: only torch knows."""
    if runtime.precision != "auto":
        return runtime.precision
    no_cuda = runtime.device in ("auto", "cpu") and cuda_is_ruled_out()
    return "fp32" if no_cuda or runtime.device == "cpu" else None


def run_folder_of(config: Any) -> RunFolder | None:
    """Folder of the run that other processes on this machine will make of a config, if any.

    Raises:
        InputError: There is no such device.
    """
    if not isinstance(config, HasRun) or not config.leaves_run:
        return None
    runtime = getattr(config, "runtime", None)
    if runtime is not None:
        precision = _known_precision(runtime)
        if precision is None:
            from mobilenext.execution import precision_here

            precision = precision_here(runtime)
        runtime.precision = precision
    return RunFolder(config.run_path)


def show(error: UserError) -> None:
    """Print one message, with a traceback if HYDRA_FULL_ERROR is set.

    Most errors are every rank's, so ranks other than 0 speak later: if rank 0 has failed as well,
    torchrun has ended them by then.
    """
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(3)
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exception(error)
    where = "" if rank == "0" else f" [rank {rank}]"
    message = "\n".join(printable(line) for line in str(error).split("\n"))
    sys.stderr.write(folded(f"error{where}: {message}\n", sys.stderr))
    sys.stderr.flush()


def _sweeps_here() -> bool:
    """Whether this process runs all the jobs of a sweep, one after the other."""
    return HydraConfig.get().mode == RunMode.MULTIRUN and not in_submitit_task()


def exit_for(error: UserError | Preempted) -> BaseException:
    """The exception that reports an error outside: an exit code, or itself for submitit."""
    if isinstance(error, Requeued):
        return SystemExit(error.exit_code)
    if in_submitit_task():
        return error
    return SystemExit(EXIT_PREEMPTED if isinstance(error, Preempted) else 1)


def _obey_late_signal() -> None:
    """End a sweep whose job was done by the time that it was asked to stop."""
    if StopSignals.unheeded and _sweeps_here():
        sys.stderr.write(f"\n{StopSignals.unheeded}: the sweep ends after this job\n")
        raise SystemExit(EXIT_PREEMPTED)


def _say_preempted(signal: str, step: int) -> None:
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(
            f"\npreempted by {signal}: the checkpoint of step {step:,} is written, and the same "
            "command goes on from there\n"
        )
        sys.stderr.flush()
