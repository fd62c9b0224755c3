"""Peak memory of a network on the processor, in a process of its own."""

import importlib
import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from mobilenext.deploy.engines import FORMAT_OF, running
from mobilenext.deploy.formats import FORMATS
from mobilenext.deploy.graph import FromPixels
from mobilenext.deploy.quiet import quietly
from mobilenext.errors import UserError

RUNS = 3
LOADED = {"onnxruntime": "onnxruntime", "executorch": "executorch.runtime"}
"""The module of each runtime that loads all of it."""
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory(engine: str, file: Path, shape: tuple[int, ...], threads: int) -> int | None:
    """Bytes by which a process grows, at most, while it loads a network and runs it.

    What loading torch or a runtime takes is not part of it, what torch.compile's compiler takes is;
    each measurement has a process of its
    own, since memory that another network has freed would hide some.

    Args:
        engine: See `engines.running`.
        file: What the engine runs; for eager mode and torch.compile a module by `torch.save`.
        shape: Of a batch of pixels.
        threads: For one run.

    Returns:
        None where the system does not tell (it is Linux that does), or the process failed.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(engine, file, shape, threads, there))
    child.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        return None
    finally:
        here.close()
        child.join()


def _measure(
    engine: str, file: Path, shape: tuple[int, ...], threads: int, answer: Connection
) -> None:
    torch.set_num_threads(threads)
    pixels = torch.zeros(shape, dtype=torch.uint8)
    try:
        if engine in FORMAT_OF:
            with quietly():
                for module in (*FORMATS[FORMAT_OF[engine]].packages, LOADED[engine]):
                    importlib.import_module(module)
        before = _resident("VmRSS")
        CLEAR.write_text("5")  # the high-water mark begins again
        source = file
        if engine not in FORMAT_OF:
            # Our own file, of a moment ago.
            source = torch.load(file, weights_only=False)
            assert isinstance(source, FromPixels)
        run = running(engine, source, pixels, threads)
        for _ in range(RUNS):
            run()
        answer.send(_resident("VmHWM") - before)
    except (OSError, LookupError, ValueError, UserError):
        answer.send(None)


def _resident(name: str) -> int:
    """An entry of this process's status, in bytes."""
    entries = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return 1024 * int(entries[name].split()[0])
