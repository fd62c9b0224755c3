"""The folder that an export leaves: free before, whole afterwards."""

from collections.abc import Sequence
from pathlib import Path

from mobilenext.files import check_output_folder, writable, write_whole


def check_output(output: Path, names: Sequence[str]) -> None:
    """Raise `InputError` unless a path is free, or a folder with files of these names only."""
    check_output_folder("output", output, names)


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
