"""Errors that are the user's to fix: shown as one message, without a traceback.

A leaf that every room may import. The message says what was expected, what came and what to do.
"""


class UserError(Exception):
    """An end that the user can do something about; `mobilenext.main` prints it and exits with 1."""


class InputError(UserError, ValueError):
    """A config value, a folder, a file or a checkpoint is not what it has to be."""


class DivergedError(UserError, RuntimeError):
    """Training produced a loss that is not a finite number."""
