"""A probe set as a file of the run directory, and back."""

from pathlib import Path
from typing import Any

import numpy as np

from dynprobe.errors import ProbeSetError, RunFormatError
from dynprobe.probe_set import ProbeSet
from dynprobe.storage.reader import FileReader
from dynprobe.storage.writer import FileWriter


def write_probe_set(path: Path, probe: ProbeSet) -> None:
    """Write a probe set; its texts and label names go into the file's description.

    Parameters
    ----------
    path
        File to write, normally ``probes/main.h5`` of a run.
    probe
        The probe set.
    """
    meta = {
        "kind": "probe-set",
        "fingerprint": probe.fingerprint,
        "label_fingerprint": probe.label_fingerprint,
        "label_names": probe.label_names,
        "texts": probe.texts,
        "batch_size": probe.batch_size,
        "tokenizer": dict(probe.tokenizer),
        "origin": probe.origin,
    }
    with FileWriter(path, meta) as file:
        for kind in ("inputs", "real", "special"):
            for name, array in getattr(probe, kind).items():
                # HDF5 has no truth values; without the mark a mask would come back as numbers, with another fingerprint.
                is_bool = array.dtype == bool
                file.write(f"{kind}/{name}", array.astype(np.uint8) if is_bool else array, boolean=is_bool)
        if probe.labels is not None:
            file.write("labels", probe.labels)


def read_probe_set(path: Path, *, verify: bool = False) -> ProbeSet:
    """Read a probe set and check that it still has its fingerprint.

    Parameters
    ----------
    path
        File of the probe set.
    verify
        Whether to check each array against its checksum too.

    Raises
    ------
    RunFormatError
        When the file is no probe set or its content no longer has its fingerprint.
    """
    with FileReader(path, verify=verify) as file:
        if file.meta.get("kind") != "probe-set":
            raise RunFormatError(f"{path}: must be a probe set; got {file.meta.get('kind')!r:.40}")
        try:
            probe = _probe_set_in(file)
        except (TypeError, ValueError, OverflowError, ProbeSetError) as error:
            raise RunFormatError(f"{path}: must hold a consistent probe set; {error}") from error
        if probe.fingerprint != file.meta.get("fingerprint"):
            raise RunFormatError(f"{path}: its inputs must have the fingerprint it states; the file is damaged")
        if probe.label_fingerprint != file.meta.get("label_fingerprint"):
            raise RunFormatError(f"{path}: its labels must have the fingerprint it states; the file is damaged")
        return probe


def read_labelled_set(path: Path, *, verify: bool = False) -> ProbeSet:
    """As :func:`read_probe_set`, of a probe task, which has the class of each example.

    Raises
    ------
    RunFormatError
        Also when it has not.
    """
    probe = read_probe_set(path, verify=verify)
    labels, n_names = probe.labels, len(probe.label_names or ())
    is_index = labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu"
    if labels is None or not is_index or labels.min() < 0 or (n_names and labels.max() >= n_names):
        raise RunFormatError(f"{path}: the examples of a probe task must each have the index of a class as label")
    return probe


def _probe_set_in(file: FileReader) -> ProbeSet:
    arrays: dict[str, dict[str, np.ndarray]] = {"inputs": {}, "real": {}, "special": {}}
    for path in file.names:
        kind, _, name = path.partition("/")
        if kind in arrays:
            array = file.read(path)
            arrays[kind][name] = array.astype(bool) if file.facts(path).get("boolean") is True else array
    return ProbeSet(
        **arrays,
        labels=file.read("labels") if "labels" in file else None,
        label_names=_strings(file.meta.get("label_names")),
        texts=None if file.meta.get("texts") is None else tuple(_strings(t) or () for t in file.meta["texts"]),
        batch_size=int(file.meta.get("batch_size", 1)),
        tokenizer={str(k): str(v) for k, v in dict(file.meta.get("tokenizer") or {}).items()},
        origin=str(file.meta.get("origin", "unknown")),
    )


def _strings(values: Any) -> tuple[str, ...] | None:
    return None if values is None else tuple(str(value) for value in values)
