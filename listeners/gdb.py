"""gdb and lldb see what is loaded: a listener over `gdbjit`."""

from __future__ import annotations

import gdbjit

from .events import JITEventListener, LoadedObject

__all__ = ["GDBRegistration"]


class GDBRegistration(JITEventListener):
    """Registers loaded objects with the debuggers of this process.

    What an engine has registered itself, where gdb and lldb see it, is left at that. `all=True`
    registers every object, in a descriptor that its library exports: gdb 15 sees no other. A
    debugger that sees both shows the object once.
    """

    def __init__(self, *, all: bool = False) -> None:
        self._all = all
        self._descriptor: gdbjit.Descriptor | None = None
        self._registrations: dict[int, gdbjit.Registration] = {}

    def notify_object_loaded(self, obj: LoadedObject) -> None:
        descriptor = self._descriptor
        if descriptor is None:
            descriptor = self._descriptor = _descriptor(exported=self._all)
        if obj.registered_in is None or obj.registered_in.address != descriptor.address:
            # An engine has linked it: LLVM gives debuggers such objects as they are, too.
            image = obj.debug_object()
            self._registrations[obj.key] = gdbjit.register(image, descriptor, trusted=True)

    def notify_freeing_object(self, obj: LoadedObject) -> None:
        registration = self._registrations.pop(obj.key, None)
        if registration is not None:
            registration.unregister()


def _descriptor(exported: bool) -> gdbjit.Descriptor:
    """The descriptor to register in: the first in load order, as lldb reads no other."""
    for descriptor in gdbjit.descriptors():
        if descriptor.exported or not exported:
            return descriptor
    return gdbjit.own_descriptor()
