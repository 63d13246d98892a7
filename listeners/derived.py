"""Attributes that are derived from an object when somebody asks, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

__all__ = ["derived"]

T = TypeVar("T")


class derived(Generic[T]):
    """`functools.cached_property` without the lock that it takes up to Python 3.11.

    The lock costs more than what it guards here. Two threads that ask at the same moment both
    derive the value, and it is the same.
    """

    def __init__(self, function: Callable[[Any], T]) -> None:
        self._function = function
        self._name = function.__name__
        self.__doc__ = function.__doc__

    @overload
    def __get__(self, obj: None, owner: type) -> derived[T]: ...
    @overload
    def __get__(self, obj: object, owner: type) -> T: ...
    def __get__(self, obj: object | None, owner: type) -> T | derived[T]:
        if obj is None:
            return self
        value = obj.__dict__[self._name] = self._function(obj)
        return value
