"""Files that may change while the server runs: what tells one state of a file from another."""

import stat
from pathlib import Path
from typing import TypeAlias

# Modification time, inode and size; None: there is no such file.
Signature: TypeAlias = tuple[int, int, int] | None


def signature(path: Path) -> Signature:
    """Differs when the file was written, or another was moved to its place, also behind a symbolic link."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def open_to_others(path: Path, *, writable: bool = False) -> bool:
    """Whether everybody on this machine may read (or write) the file."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return bool(mode & (stat.S_IWOTH if writable else stat.S_IROTH))
