"""Ends of a run other than finishing; each is shown as one message, without a traceback.

A leaf that every room may import. The message says what was expected, what came and what to do.
"""


class UserError(Exception):
    """An end that the user can do something about; `mobilenext.main` prints it and exits with 1."""


class InputError(UserError, ValueError):
    """A config value, a folder, a file or a checkpoint is not what it has to be."""


class DamagedFileError(InputError):
    """A file of ours was cut short or altered since it was written, or is not ours at all."""


class DivergedError(UserError, RuntimeError):
    """Training produced a loss or a gradient that is not a finite number."""


class LostProcessError(UserError, RuntimeError):
    """Another process of the job died or stopped answering."""


class Preempted(Exception):  # noqa: N818 - it went as it should
    """A signal ended the run early, after a checkpoint; the same command goes on from there."""


def first_line(error: BaseException, line: int = 0) -> str:
    """A line of what an error says, the first by default; its type's name if it says nothing.

    Args:
        error: Of a library, whose messages may be pages long.
        line: Which one; the last if there are fewer.
    """
    lines = [text.strip() for text in str(error).splitlines() if text.strip()]
    return lines[min(line, len(lines) - 1)] if lines else type(error).__name__
