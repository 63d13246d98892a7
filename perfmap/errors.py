"""The one family of errors of this package."""


class PerfMapError(Exception):
    """What was wrong, where (file, line or address), and what to do about it."""
