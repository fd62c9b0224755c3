"""Processes of one machine open class folders one after the other; rank 0 prints JSON.

Argument: the folder with train and val. $XDG_CACHE_HOME gets the cache.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mobilenext.data import ImageData, folder_index, image_folder, sources
from mobilenext.data.sources import labels_checksum
from mobilenext.errors import InputError
from mobilenext.runtime.distributed import process_group

folder_index.FEWEST_CACHED, folder_index.SETTLED_NS = 1, 0
walked, walk = [], sources._walked


def counted(root: Path, classes: list[str]) -> folder_index.FolderIndex:
    """The index of one split, by a walk."""
    walked.append(root.name)
    return walk(root, classes)


sources._walked = counted  # pyright: ignore[reportAttributeAccessIssue]

if __name__ == "__main__":
    with process_group("cpu", 5) as process:
        images: ImageData = process.first_on_node(lambda: image_folder(sys.argv[1]))

        def fails_on(rank: int) -> None:
            if process.rank == rank:
                raise InputError(f"rank {rank} can't")

        def said(failing: int) -> str | None:
            """What this rank raises when one does; None: nothing."""
            try:
                process.first_on_node(lambda: fails_on(failing))
            except InputError as error:
                return str(error)
            return None

        results = {
            "walked": process.gather(walked),
            "labels": process.gather(labels_checksum(images.train)),
            "said": [process.gather(said(failing)) for failing in (0, 1, 2)],
        }
    if process.is_main:
        print(json.dumps(results))  # noqa: T201
