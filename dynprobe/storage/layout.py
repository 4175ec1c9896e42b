"""Names and limits of the run format: where each file lies, what it may hold. FORMAT.md says it in words."""

import os
import re
from pathlib import Path

FORMAT_VERSION = 1

MANIFEST = "manifest.json"
SCALARS = "scalars.jsonl"
LEDGER = "ledger.jsonl"
LOCK = ".writer.lock"
OWNER = ".writer.json"
PROBES = "probes"
SNAPSHOTS = "snapshots"
TASK_SPLITS = ("train", "test")
RANDOM = "random-"  # before the name of a stack: of an encoder with random weights
TEMPORARY_SUFFIX = ".tmp"

META = "meta"
META_DIGEST = "meta_sha256"

# A file that needs more than this is none of ours; the reader refuses it before it allocates anything.
MAX_DEPTH = 8
MAX_OBJECTS = 100_000
MAX_META_BYTES = 64 * 2**20
MAX_MANIFEST_BYTES = 16 * 2**20
MAX_SCALARS_BYTES = 2**30
MAX_SCALARS_LINE = 2**20
MAX_LEDGER_BYTES = 2**28
MAX_LEDGER_LINE = 2**24

# One name for each step: eight digits, more only when the number needs them.
_SNAPSHOT_NAME = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,11})\.h5")
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_PROBE_NAME = re.compile(rf"{_SAFE_NAME.pattern}\.h5")
# Without dots and with room for what follows, so that each part of a task has one name and each name one meaning.
_TASK_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,57}")
_TASK_PART = re.compile(rf"({_TASK_NAME.pattern})\.(train|test)")
_TEMPORARY_NAME = re.compile(
    rf"(?:{re.escape(MANIFEST)}|{re.escape(OWNER)}|{_SAFE_NAME.pattern}\.h5)\.[0-9]+{re.escape(TEMPORARY_SUFFIX)}"
)


def snapshot_path(run: Path, step: int) -> Path:
    """File of the snapshot of one step."""
    return run / SNAPSHOTS / f"step-{step:08d}.h5"


def probe_path(run: Path, name: str = "main") -> Path:
    """File of one probe set."""
    return run / PROBES / f"{name}.h5"


def is_task_name(name: str) -> bool:
    """Whether a probe task may have a name: letters, digits, ``_ -``, at most 58 of them."""
    return _TASK_NAME.fullmatch(name) is not None


def task_name_of(text: str) -> str:
    """A name that a probe task may have, from one that it may not: that of a file, or one with a folder.

    Examples
    --------
    >>> task_name_of("glue/rte"), task_name_of("my data"), task_name_of("wic")
    ('glue-rte', 'my-data', 'wic')
    """
    return re.sub(r"[^A-Za-z0-9_-]", "-", text).lstrip("-")[:58] or "task"


def task_part(name: str, split: str) -> str:
    """Name of the probe set of one split of a probe task, and of the group of its arrays in a snapshot.

    Examples
    --------
    >>> task_part("wic", "train"), task_part_of("wic.train"), task_part_of("main")
    ('wic.train', ('wic', 'train'), None)
    """
    return f"{name}.{split}"


def task_part_of(name: str) -> tuple[str, str] | None:
    """Name and split of a probe task that the name of a probe set means, or ``None`` for a probe set of another kind."""
    match = _TASK_PART.fullmatch(name)
    return (match.group(1), match.group(2)) if match else None


def step_of(path: Path) -> int | None:
    """Step that a snapshot file is named for, or ``None`` when it has another name.

    Examples
    --------
    >>> step_of(Path("step-00000120.h5")), step_of(Path("step-00000120.h5.tmp"))
    (120, None)
    """
    match = _SNAPSHOT_NAME.fullmatch(path.name)
    return int(match.group(1)) if match else None


def temporary_path(path: Path) -> Path:
    """Name under which this process writes a file before it is complete."""
    return path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")


def is_temporary(path: Path) -> bool:
    """Whether a file is named as an incomplete file of a run: its name, a process number, ``.tmp``.

    Examples
    --------
    >>> is_temporary(Path("manifest.json.4711.tmp")), is_temporary(Path("notes.tmp"))
    (True, False)
    """
    return _TEMPORARY_NAME.fullmatch(path.name) is not None


def is_probe_name(path: Path) -> bool:
    """Whether a file is named as a probe set."""
    return _PROBE_NAME.fullmatch(path.name) is not None


def is_safe_name(name: str) -> bool:
    """Whether a name may be a component of a path: letters, digits, ``_ . -``, and never a way out of its folder."""
    return _SAFE_NAME.fullmatch(name) is not None
