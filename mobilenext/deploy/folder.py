"""The folder that an export leaves."""

from collections.abc import Sequence
from pathlib import Path

from mobilenext.deploy import classify, find_objects
from mobilenext.deploy.preprocessing import PREPROCESSING, Preprocessing
from mobilenext.files import writable, write_whole

CLASSIFY = "classify.py"
FIND_OBJECTS = "find_objects.py"
BESIDE = (PREPROCESSING, CLASSIFY, FIND_OBJECTS)
"""What may go along with a file of another runtime."""


def write_beside(folder: Path, preprocessing: Preprocessing) -> str:
    """Write what goes along with a file of another runtime: how pixels are made, and an example.

    Returns:
        The example's name.
    """
    name, program = CLASSIFY, classify
    if preprocessing.postprocessing is not None:
        name, program = FIND_OBJECTS, find_objects
    (folder / PREPROCESSING).write_text(preprocessing.text(), encoding="utf-8")
    (folder / name).write_bytes(Path(str(program.__file__)).read_bytes())
    return name


def publish(staged: Path, output: Path, names: Sequence[str]) -> list[str]:
    """Copy files into their folder, each as a whole, and remove those of an earlier export.

    Args:
        staged: The folder that they were made in; has some of `names`.
        output: The folder; made if it is not there.
        names: All names that an export of this kind may leave.

    Returns:
        The files' names.

    Raises:
        InputError: The folder can't be written to.
    """
    files = [name for name in names if (staged / name).exists()]
    with writable(f"output={output}"):
        for name in files:
            write_whole(output / name, (staged / name).read_bytes())
        for name in set(names) - set(files):
            (output / name).unlink(missing_ok=True)
    return files
