"""The one family of errors of this package."""


class GDBJITError(Exception):
    """What was wrong, where, and what to do about it."""
