"""The error of this package, raised by every part of it."""


class JITListenerError(Exception):
    """Something could not be read, built or attached: the message says what, where and the remedy.

    A malformed object, image or frame table is always this error, never another one.
    """
