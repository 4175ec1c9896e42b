"""One writer for a run directory: a lock of the operating system, or a file that names the writer where there are no locks."""

import contextlib
import json
import os
import socket
import stat
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from dynprobe.errors import UsageError
from dynprobe.storage.layout import LOCK, OWNER, temporary_path
from dynprobe.storage.sealed import open_own

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_MAX_OWNER_BYTES = 4096
_SECONDS_TO_WRITE = 10


class Claim:
    """The right to write to a run directory, until it is closed or the process ends.

    The lock is ``flock``, which the system takes back when the process dies. Where the file system or the operating system
    has no such locks, the file ``.writer.json`` names host and process of the writer; it is void when that process is gone.
    A process that is made by ``fork`` never keeps the claim of its parent alive.

    Parameters
    ----------
    path
        The run directory.

    Raises
    ------
    UsageError
        When another living process writes to it, or when the lock file is a symbolic link.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._process = os.getpid()
        self._owner: dict[str, Any] | None = None
        try:
            self._descriptor: int | None = open_own(path / LOCK)
        except OSError as error:
            raise UsageError(f"{path}: must be a folder that can be written to; {error}") from error
        try:
            if not self._is_locked(self._descriptor):
                self._owner = _become_owner(path)
        except BaseException:
            self.close()
            raise
        _claims.add(self)

    def __enter__(self) -> "Claim":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Give the claim back; in a process that was made by ``fork``, only let go of it."""
        descriptor, self._descriptor = getattr(self, "_descriptor", None), None
        if descriptor is not None:
            os.close(descriptor)
        owner, self._owner = getattr(self, "_owner", None), None
        if owner is not None and os.getpid() == self._process and _read(self._path / OWNER) == owner:
            (self._path / OWNER).unlink(missing_ok=True)

    def _is_locked(self, descriptor: int) -> bool:
        """Take the lock; false where there are none."""
        if fcntl is None:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"{self._path}: must have one writer; another process writes to it now. Choose another path"
            ) from None
        except OSError:  # a file system without locks, as some network file systems are
            return False
        return True


# A forked process, such as a worker of a DataLoader, shares the parent's lock and would hold it after the parent's death.
_claims: weakref.WeakSet[Claim] = weakref.WeakSet()


def _let_go() -> None:
    for held in list(_claims):
        held.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def claim(path: Path) -> Claim:
    """Claim a run directory for writing, until the returned claim is closed or the process ends.

    Raises
    ------
    UsageError
        When another living process writes to it.
    """
    return Claim(path)


def _become_owner(path: Path) -> dict[str, Any] | None:
    """Claim by a file that names this process; a file whose process is gone is put aside first."""
    if os.name != "posix":
        return None  # whether another process lives cannot be asked there: nothing is claimed, and nothing blocks
    mine = _this_process()
    for _attempt in range(2):
        if _create(path / OWNER, json.dumps(mine)):
            return mine
        there = _read(path / OWNER)
        if there is not None:
            if not _is_gone(there, path / OWNER):
                break
            _put_aside(path, there)
    raise UsageError(
        f"{path}: must have one writer; another process writes to it now, number {_of(there, 'process')} on host "
        f"{_of(there, 'host')}. Choose another path; when that process is dead, remove {path / OWNER}"
    )


def _of(owner: dict[str, Any] | None, key: str) -> str:
    return ascii((owner or {}).get(key, "unknown"))[:80]


def _create(file: Path, text: str) -> bool:
    """Make a file that is complete from the first moment; false when one of that name is there already."""
    draft = temporary_path(file)
    try:
        draft.unlink(missing_ok=True)
        draft.write_text(text, encoding="utf-8")
        os.link(draft, file)
        return True
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        with contextlib.suppress(FileExistsError), file.open("x", encoding="utf-8") as stream:
            stream.write(text)
            return True
        return False
    finally:
        draft.unlink(missing_ok=True)


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "boot": _text(_BOOT),
        "process": os.getpid(),
        "started": _started(os.getpid()),
    }


def _is_gone(owner: dict[str, Any], file: Path) -> bool:
    """Whether the process that a file names is certainly dead; of another host nothing is known."""
    process, mine = owner.get("process"), _this_process()
    if type(process) is not int or process <= 0:  # half a file: its writer was killed, or is writing it at this moment
        return time.time() - file.lstat().st_mtime > _SECONDS_TO_WRITE
    if owner.get("host") != mine["host"]:
        return False
    if owner.get("boot") != mine["boot"] or owner.get("started") != _started(process):
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # it lives, and belongs to somebody else
    return False


def _put_aside(path: Path, stale: dict[str, Any]) -> None:
    """Remove a void file, unless another process was faster and the file is its claim by now."""
    aside = temporary_path(path / OWNER)
    with contextlib.suppress(FileNotFoundError):
        (path / OWNER).rename(aside)
        if _read(aside) != stale:
            with contextlib.suppress(OSError):
                os.link(aside, path / OWNER)
        aside.unlink(missing_ok=True)


def _read(file: Path) -> dict[str, Any] | None:
    """What a claim file says; an empty mapping for what is none, ``None`` when it is gone."""
    try:
        if not stat.S_ISREG(file.lstat().st_mode):
            return {}
        with file.open("rb") as stream:
            owner = json.loads(stream.read(_MAX_OWNER_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _started(process: int) -> str | None:
    """When a living process began, in ticks since the start of the system; tells it from a later one of the same number."""
    facts = (_text(Path(f"/proc/{process}/stat")) or "").rpartition(")")[2].split()
    return facts[19] if len(facts) > 19 and facts[0] not in "ZX" else None  # Z, X: dead, and not yet waited for


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
