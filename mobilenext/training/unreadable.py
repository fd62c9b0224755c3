"""Images that could not be read: brought together from all processes, named once."""

from dataclasses import dataclass

from mobilenext.data import Loader
from mobilenext.runtime.distributed import Process
from mobilenext.training.progress import say
from mobilenext.training.run_folder import RunFolder
from mobilenext.training.state import TrainState


@dataclass
class Loaders:
    """The batches of both splits."""

    train: Loader
    val: Loader


def gather_unreadable(
    state: TrainState, loaders: Loaders, process: Process, folder: RunFolder
) -> None:
    """Add to the state what any process could not read; new ones are printed and listed.

    All processes call this together.

    Raises:
        InputError: More images of a split are unreadable than its loader allows.
    """
    splits = {"train": loaders.train, "val": loaders.val}
    if not any(loader.skips for loader in splits.values()):
        return
    found = process.gather({split: loader.unreadable for split, loader in splits.items()})
    news: list[str] = []
    for split, known in state.unreadable.items():
        for part in found:
            news += [text for index, text in part[split].items() if index not in known]
            known |= part[split]
        splits[split].check_share(known)
    for text in news:
        say(f"warning: left out: {text}", process)
    if news:
        parts = state.unreadable.items()
        lines = [f"{split} {known[index]}" for split, known in parts for index in sorted(known)]
        process.on_main(lambda: folder.write_unreadable(lines))
