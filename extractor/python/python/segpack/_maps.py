"""Files of a pack, mapped into memory."""

import mmap
import os
import stat
import threading
from pathlib import Path

from ._errors import DamagedError, EnvironmentFailure


class Maps:
    """The files of one pack folder that are mapped, each once for reading and once for copies on write.

    A map lives as long as an array that looks into it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._maps: dict[tuple[str, bool], mmap.mmap] = {}
        self._lock = threading.Lock()

    def get(self, path: str, length: int, *, writable: bool) -> mmap.mmap:
        """The file of this path, relative to the pack, which must have so many bytes.

        What is written into a writable map stays in this process and never reaches the file.
        """
        with self._lock:
            known = self._maps.get((path, writable))
            if known is None:
                known = self._maps[path, writable] = self._open(path, length, writable)
            return known

    def _open(self, path: str, length: int, writable: bool) -> mmap.mmap:
        whole = self._folder / path
        try:
            descriptor = _open_beneath(self._folder, path)
        except OSError as e:
            kind = DamagedError if isinstance(e, (FileNotFoundError, NotADirectoryError)) else EnvironmentFailure
            raise kind(f"cannot open {whole}: {e.strerror}", file=whole, causes=[str(e.strerror)]) from e
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise DamagedError(f"{whole} is no regular file", file=whole)
            # bytes beyond the end of a file would end the process
            if found.st_size != length:
                raise DamagedError(f"{whole} has {found.st_size} bytes, wanted {length}", file=whole)
            access = mmap.ACCESS_COPY if writable else mmap.ACCESS_READ
            return mmap.mmap(descriptor, length, access=access)
        except OSError as e:
            raise EnvironmentFailure(f"cannot map {whole}: {e.strerror}", file=whole) from e
        finally:
            os.close(descriptor)


def _open_beneath(folder: Path, path: str) -> int:
    """Opens a file without following any link below the folder."""
    *folders, name = path.split("/")
    flags = os.O_RDONLY | os.O_CLOEXEC
    here = os.open(folder, flags | os.O_DIRECTORY)
    try:
        for part in folders:
            there = os.open(part, flags | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = there
        # a pipe without a writer would be waited for
        return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=here)
    finally:
        os.close(here)
