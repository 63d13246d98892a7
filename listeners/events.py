"""What an engine says and a listener hears: objects loaded, objects about to be freed.

`LoadedObject` is the one noun that crosses from engines to listeners: the object's bytes as
the compiler emitted them, and the load address of each of its sections. All else — functions,
lines, the linked image — is derived from these two, when somebody asks, once.
"""

from __future__ import annotations

import itertools
import operator
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from .derived import derived
from .errors import JITListenerError
from .functions import Function, read_functions
from .objectfile import ObjectFile

if TYPE_CHECKING:
    import gdbjit

    from .timing import EngineCall

__all__ = ["EventSink", "Function", "JITEventListener", "Line", "LoadedObject", "Section"]


@dataclass(frozen=True)
class Section:
    """A section of a loaded object that takes up memory."""

    name: str
    index: int
    """Its index in the object's section header table."""
    address: int
    """Its load address."""
    size: int
    """In bytes."""
    flags: int
    """`sh_flags`."""


class Line(NamedTuple):
    """Code of one source line: it begins at `address` and ends where the next one begins."""

    address: int
    file: str
    """As the compiler wrote it, the compilation directory in front where it is relative."""
    line: int
    """0 where the code has no source line, and behind the last line of a sequence."""


_keys = itertools.count(1)
_ADDRESS = operator.attrgetter("address")


class LoadedObject:
    """An object that an engine has loaded: what it holds and where it lies.

    All of it can be read after the engine has freed the code, but `image()` and `lines()` must
    have been asked for before. What looks into an object that is malformed raises
    JITListenerError.
    """

    def __init__(
        self,
        file: Callable[[], ObjectFile],
        read: Callable[[int, int], bytes],
        addresses: Mapping[int, int] | None = None,
        registered_in: gdbjit.Descriptor | None = None,
    ) -> None:
        """The object `file()`, its section of index i loaded at `addresses[i]`.

        Without `addresses`, those in the file's section headers count. `file` is called when the
        object is first looked into, and `read(address, size)` gives the bytes of loaded memory.
        `registered_in` is the descriptor of the GDB JIT interface in which the engine itself has
        registered the object.
        """
        self.key = next(_keys)
        """A number no other object of this process has or will have."""
        self.registered_in = registered_in
        self._open = file
        self._file: ObjectFile | None = None
        self._addresses = addresses
        self._read: Callable[[int, int], bytes] | None = read

    def __repr__(self) -> str:
        try:
            return f"<LoadedObject {self.key} {self.name!r}>"
        except JITListenerError:
            return f"<LoadedObject {self.key}, malformed>"

    def _opened(self) -> ObjectFile:
        if self._file is None:
            self._file = self._open()
        return self._file

    def _placed(self) -> tuple[ObjectFile, Mapping[int, int]]:
        """The object, and the load addresses of its sections by their index."""
        file = self._opened()
        return file, file.addresses if self._addresses is None else self._addresses

    @derived
    def elf(self) -> bytes:
        """The object file's bytes as the compiler emitted them."""
        return self._opened().emitted

    @derived
    def name(self) -> str:
        """What to call the object: its first function's name, else that of its first section."""
        if self.functions:
            return self.functions[0].demangled
        return self.sections[0].name if self.sections else f"object {self.key}"

    @derived
    def sections(self) -> tuple[Section, ...]:
        """The sections that take up memory, in the order of the object's section table."""
        file, addresses = self._placed()
        return tuple(
            Section(
                file.section_name(index),
                index,
                addresses[index],
                file.sections[index].size,
                file.sections[index].flags,
            )
            for index in file.allocated
            if index in addresses
        )

    @derived
    def functions(self) -> tuple[Function, ...]:
        """The functions, by address."""
        return tuple(read_functions(self._opened(), self._addresses))

    def section(self, name: str) -> Section:
        """The first section called `name`; KeyError if there is none in memory."""
        for section in self.sections:
            if section.name == name:
                return section
        raise KeyError(name)

    def function(self, name: str) -> Function:
        """The function called `name`, mangled or demangled; KeyError if there is none."""
        for function in self.functions:
            if function.name == name:
                return function
        for function in self.functions:
            if function.demangled == name:
                return function
        raise KeyError(name)

    def function_at(self, address: int) -> Function | None:
        """The function whose code holds `address`, or None."""
        at = bisect_right(self.functions, address, key=_ADDRESS)
        if at:
            function = self.functions[at - 1]
            if address < function.address + function.size:
                return function
        return None

    def debug_object(self) -> bytes:
        """The object file's bytes with the load address of each section in its sh_addr.

        What LLVM itself gives to debuggers, which relocate the debug information.
        """
        file = self._opened()
        return file.data if self._addresses is None else file.placed(self._addresses)

    def image(self) -> bytes:
        """The object as one linked ELF file at its load addresses, for any tool.

        Raises JITListenerError if the object was freed before the first call.
        """
        return self._image

    @derived
    def _image(self) -> bytes:
        from .image import build_image

        if self._read is None:
            raise JITListenerError(
                f"{self!r}: the engine has freed its memory; ask for the image before that"
            )
        return build_image(*self._placed(), self._read)

    def forget_memory(self) -> None:
        """For the engine: the object's memory goes now, and is not to be read again."""
        self._read = None

    def lines(self) -> tuple[Line, ...]:
        """The source lines of the code, by address; empty without debug information.

        Raises JITListenerError if the debug information is malformed.
        """
        return self._lines

    @derived
    def _lines(self) -> tuple[Line, ...]:
        from .lines import read_lines

        return read_lines(self.image())


class JITEventListener:
    """Base of all listeners; LLVM's own names.

    The methods are called while the engine's lock is held, by the thread that loads or frees:
    be brief, and do not wait for another thread that uses LLVM. What they raise is reported
    through `logging`, once a listener, and disturbs nobody.
    """

    def notify_object_loaded(self, obj: LoadedObject) -> None:
        """`obj` has been loaded and can run; nobody has its addresses yet."""

    def notify_freeing_object(self, obj: LoadedObject) -> None:
        """`obj` is about to be freed."""

    def notify_time_spent(self, call: EngineCall) -> None:
        """`call`, in which objects were loaded or freed, is over. Of all engines that tell their
        times and of all listeners, which are measured only where this method is overridden."""


class EventSink(Protocol):
    """Where an engine sends its events: an attachment."""

    def loaded(self, obj: LoadedObject) -> None: ...

    def freeing(self, obj: LoadedObject) -> None: ...

    def end(self) -> None: ...
