"""What tests of engines share: functions to load, and a listener that writes down what it hears."""

import ctypes

import listeners

Int = ctypes.CFUNCTYPE(ctypes.c_int64)


class Log(listeners.JITEventListener):
    """Writes down what it hears."""

    def __init__(self, name: str = "", log: list | None = None) -> None:
        self.name = name
        self.events = [] if log is None else log
        self.objects = []

    def notify_object_loaded(self, obj):
        self.objects.append(obj)
        self.events.append(f"{self.name}+{obj.name}")

    def notify_freeing_object(self, obj):
        self.events.append(f"{self.name}-{obj.name}")


def function(name: str, value: int = 1) -> str:
    return f'define i64 @"{name}"() {{ ret i64 {value} }}'
