"""perf, bpf tools and all that read mappings see code as files: a listener over `perfmap`."""

from __future__ import annotations

import ctypes
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from mmap import PAGESIZE
from pathlib import Path

from perfmap import PerfMapError
from perfmap.codeimage import Annex, Headroom, check_code, cover
from perfmap.dumpfile import run_directory
from perfmap.names import in_file_name

from .codefile import Loaded, build_code_file, room_for_frames
from .errors import JITListenerError
from .events import JITEventListener, LoadedObject
from .objectfile import SHF_EXECINSTR, ObjectFile
from .perf import PerfMap

__all__ = ["CodeImages"]

logger = logging.getLogger("listeners")


@dataclass(eq=False)
class _Image:
    """A file mapped over pages of code."""

    start: int
    end: int
    objects: dict[int, Loaded]
    """Those that have code there, by key."""
    frames: int | None
    """The address of its pages of frames."""
    frames_size: int


class CodeImages(JITEventListener):
    """Maps an ELF file over each loaded object's code: an ordinary shared object for perf.

    The file holds the pages as they are, symbols, debug information and call frames. `perf report`,
    `annotate`, `top` and `--call-graph dwarf` work while the program runs and after its end.
    Objects that share a page share a file.

    The files (mode 0600) are in `directory`, or in a new directory of this run in `.debug/jit` of
    $JITDUMPDIR or of home. They stay until `jitlisten clean`.

    Where pages cannot be covered, the functions are named in the map file, as by `PerfMap`. Why is
    logged, once a reason, and stands in `problems`.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        self._directory = None if directory is None else Path(directory).absolute()
        self._images: dict[int, _Image | None] = {}
        """By page; None where there was one."""
        self._starts: dict[int, list[int]] = {}
        """Pages of the images that an object has a part in, by its key."""
        self._annex = Annex()
        self._headroom = Headroom()
        self._map: PerfMap | None = None
        self._problems: list[str] = []

    @property
    def problems(self) -> tuple[str, ...]:
        """Why objects have no image, or not all of it; each reason once."""
        return tuple(self._problems)

    def notify_object_loaded(self, obj: LoadedObject) -> None:
        runs = _page_runs(obj)
        if not runs:
            return
        try:
            loaded = ObjectFile(obj.elf), {s.index: s.address for s in obj.sections}
            for start, end in runs:
                self._map_image(obj, loaded, start, end)
                self._starts.setdefault(obj.key, []).append(start)
        except (PerfMapError, JITListenerError, OSError) as error:
            self._report(f"code is named in the map file only: {error}")
            self._map = self._map or PerfMap()
            self._map.notify_object_loaded(obj)

    def notify_freeing_object(self, obj: LoadedObject) -> None:
        # The engine unmaps the code. Until then other threads may be running it.
        for start in self._starts.pop(obj.key, ()):
            image = self._images.get(start)
            if image and image.objects.pop(obj.key, None) and not image.objects:
                self._forget(image)
        if self._map:
            self._map.notify_freeing_object(obj)

    def _map_image(self, obj: LoadedObject, loaded: Loaded, start: int, end: int) -> None:
        """Map a file over the pages from `start` to `end`, and what they share files with."""
        pages = range(start, end, PAGESIZE)
        replaced = {image for page in pages if (image := self._images.get(page))}
        start = min([start, *(image.start for image in replaced)])
        end = max([end, *(image.end for image in replaced)])
        objects = {key: other for image in replaced for key, other in image.objects.items()}
        objects[obj.key] = loaded

        self._headroom.check()
        check_code(start, end, mine=any(page in self._images for page in pages))
        size = room_for_frames(objects.values())
        frames = self._take(size, start, end) if size else None
        with ExitStack() as undo:
            if frames is not None:
                undo.callback(self._annex.give_back, frames, size)
            code = ctypes.string_at(start, end - start)
            file = build_code_file(objects.values(), start, code, frames)
            with self._written(obj.name, file.data) as descriptor:
                if frames is not None:
                    self._annex.fill(frames, size, descriptor, file.frames)
                cover(start, code, descriptor, file.code)
            undo.pop_all()
        for image in replaced:
            self._forget(image)
        image = _Image(start, end, objects, frames, size)
        self._images.update(dict.fromkeys(range(start, end, PAGESIZE), image))

    def _take(self, size: int, start: int, end: int) -> int | None:
        try:
            return self._annex.take(size, start, end)
        except PerfMapError as error:
            self._report(f"call chains by dwarf end at code: {error}")
            return None

    def _forget(self, image: _Image) -> None:
        if image.frames is not None:
            self._annex.give_back(image.frames, image.frames_size)
        self._images.update(dict.fromkeys(range(image.start, image.end, PAGESIZE)))

    def _report(self, problem: str) -> None:
        if problem not in self._problems:
            self._problems.append(problem)
            logger.warning("%s", problem)

    @contextmanager
    def _written(self, name: str, data: bytes) -> Iterator[int]:
        """A new file of these bytes, open for reading; removed if it cannot be used."""
        if self._directory is None:
            self._directory = run_directory()
        prefix = f"{in_file_name(name, 40)}-{os.getpid()}-"
        try:
            with ExitStack() as undo:
                descriptor, path = tempfile.mkstemp(".so", prefix, self._directory)
                undo.callback(Path(path).unlink, missing_ok=True)
                # Closed before it is mapped: some file systems tell only then of a full disk.
                with os.fdopen(descriptor, "wb", buffering=0) as file:
                    view = memoryview(data)
                    while view:
                        view = view[file.write(view) :]
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    yield descriptor
                finally:
                    os.close(descriptor)
                undo.pop_all()
        except OSError as error:
            raise PerfMapError(
                f"cannot write in {str(self._directory)!r}: {error.strerror};"
                " set JITDUMPDIR to another directory"
            ) from error


def _page_runs(obj: LoadedObject) -> list[tuple[int, int]]:
    """The page ranges that hold the object's code, each as long as possible."""
    runs: list[tuple[int, int]] = []
    for section in sorted(obj.sections, key=lambda section: section.address):
        if section.flags & SHF_EXECINSTR:
            start = section.address & -PAGESIZE
            end = (section.address + section.size + PAGESIZE - 1) & -PAGESIZE
            if runs and start <= runs[-1][1]:
                start = runs.pop()[0]
            runs.append((start, end))
    return runs
