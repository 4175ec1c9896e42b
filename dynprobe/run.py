"""Read-only views of a run directory: :class:`Run`, :class:`Snapshot`; arrays are read when they are asked for."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import numpy as np

from dynprobe.errors import RunFormatError, StepNotFoundError, UsageError
from dynprobe.probe_set import ProbeSet
from dynprobe.storage.directory import read_manifest, read_scalars
from dynprobe.storage.folder import list_probe_tasks, list_steps, require_run
from dynprobe.storage.layout import RANDOM, TASK_SPLITS, probe_path, snapshot_path, task_part
from dynprobe.storage.probe_file import read_labelled_set, read_probe_set
from dynprobe.storage.ragged import Ragged as Ragged
from dynprobe.storage.reader import FileReader
from dynprobe.storage.schema import require_examples, require_inside, require_offsets, require_snapshot
from dynprobe.storage.verify import require_intact_records

PROBE = "main"


@dataclass(frozen=True)
class Outputs:
    """What the model said about the probe examples.

    Attributes
    ----------
    kind
        ``"logits"``: (n_examples, n_classes). ``"nll"``: negative log-likelihood of each predicted token in nats, all
        examples one after another. ``"token_logits"``: (n_real_tokens, n_classes), all examples one after another.
    values
        The numbers, float32.
    offsets
        (n_examples + 1,) first row of each example, or ``None`` for ``"logits"``.
    """

    kind: str
    values: np.ndarray
    offsets: np.ndarray | None = None


class Snapshot(AbstractContextManager["Snapshot"]):
    """One training step of a run, measured on its probe set. Layer 0 is the embeddings, layer k the output of block k.

    Parameters
    ----------
    path
        A snapshot file.
    verify
        Whether to check each array against its checksum when it is first read.
    """

    def __init__(self, path: Path, *, verify: bool = False) -> None:
        self._path = path
        self._verify = verify

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_verify": self._verify}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; it is opened again when something is read."""
        if "_file" in self.__dict__:
            self._file.close()
            del self.__dict__["_file"]

    @cached_property
    def _file(self) -> FileReader:
        file = FileReader(self._path, verify=self._verify)
        try:
            require_snapshot(file)
        except RunFormatError:
            file.close()
            raise
        return file

    @property
    def step(self) -> int:
        """Number of optimizer steps before this snapshot."""
        return int(self._file.meta["step"])

    @property
    def meta(self) -> Mapping[str, Any]:
        """The file's own description, without the list of its arrays."""
        return MappingProxyType({key: value for key, value in self._file.meta.items() if key != "datasets"})

    @property
    def n_bytes(self) -> int:
        """Size of the file in bytes."""
        return self._path.stat().st_size

    @property
    def stacks(self) -> tuple[str, ...]:
        """Stacks with anything stored: ``("model",)`` or ``("encoder", "decoder")``."""
        found = {name.split("/")[1] for name in self._file.names if name.count("/") >= 3}
        return tuple(stack for stack in ("model", "encoder", "decoder") if stack in found)

    def layers(self, stack: str = "model") -> tuple[int, ...]:
        """Layers with hidden states."""
        return self._numbers(f"{PROBE}/{stack}/hidden_states/")

    def attention_layers(self, stack: str = "model", kind: str = "self") -> tuple[int, ...]:
        """Blocks with attention, counted from 1."""
        return self._numbers(f"{PROBE}/{stack}/{kind}_attention/")

    def pooled_kinds(self, stack: str = "model", *, probe: str = PROBE) -> tuple[str, ...]:
        """Kinds of pooled vectors of a probe set; the first is the model family's own stand-in for [CLS]."""
        prefix = f"{probe}/{stack}/pooled/"
        kinds = {name[len(prefix) :].split("/")[0] for name in self._file.names if name.startswith(prefix)}
        return tuple(kind for kind in ("first", "last", "mean") if kind in kinds)

    def pooled_layers(self, kind: str, stack: str = "model", *, probe: str = PROBE) -> tuple[int, ...]:
        """Layers with pooled vectors of a kind."""
        return self._numbers(f"{probe}/{stack}/pooled/{kind}/")

    def hidden_states(self, layer: int, stack: str = "model", *, rows: slice = slice(None)) -> np.ndarray:
        """(n_rows, d_model) hidden states of the sampled real tokens, or some rows; row i is token :meth:`hidden_rows` [i]."""
        return self._read(f"{PROBE}/{stack}/hidden_states/{layer}", rows)

    def d_model(self, layer: int, stack: str = "model") -> int:
        """Width of the hidden states of a layer."""
        name = f"{PROBE}/{stack}/hidden_states/{layer}"
        self._require(name)
        return int(self._file.shape(name)[1])

    def hidden_rows(self, stack: str = "model") -> np.ndarray:
        """(n_rows, 2) example and position of each row of the hidden states."""
        return require_inside(self._read(f"{PROBE}/{stack}/index/hidden_rows"), self._path, stack)

    def attentions(self, layer: int, stack: str = "model", kind: str = "self") -> Ragged:
        """Attention probabilities among real tokens of one block, one (n_heads, n_query, n_key) array per example.

        Of kind ``"self"``, ``"cross"``, or ``"cls"``: only [CLS] or what stands for it as query, so that n_query is 1.
        """
        name = f"{PROBE}/{stack}/{kind}_attention/{layer}"
        self._require(name)
        prefix = "" if kind == "self" else f"{kind}_"
        lengths = self._read(f"{PROBE}/{stack}/index/{prefix}attention_shape")
        n_heads = self._file.facts(name).get("n_heads")
        is_table = lengths.ndim == 2 and lengths.shape[1] == 2 and lengths.dtype.kind in "iu"
        if type(n_heads) is not int or n_heads < 1 or not is_table or (lengths < 0).any():
            raise RunFormatError(f"{self._path}: `{name}` must state its heads and lengths")
        return Ragged(self._file, name, n_heads, lengths)

    def attention_examples(self, stack: str = "model") -> np.ndarray:
        """Index in the probe set of each example whose attention is stored."""
        return require_inside(self._read(f"{PROBE}/{stack}/index/attention_examples"), self._path, stack)

    def n_heads(self, stack: str = "model", kind: str = "self") -> int:
        """Number of heads of each block."""
        layers = self.attention_layers(stack, kind)
        return self.attentions(layers[0], stack, kind).n_heads if layers else 0

    def pooled(self, kind: str, layer: int, stack: str = "model", *, probe: str = PROBE) -> np.ndarray:
        """(n_examples, d_model) one vector per example: the first or last real token, or the mean of the real tokens.

        Of the main probe set, or of a split of a probe task as `probe`, such as ``"wic.train"``. Of that, the stack
        ``"random-model"`` is the encoder with random weights; see :meth:`Run.random_encoder`.
        """
        vectors = self._read(f"{probe}/{stack}/pooled/{kind}/{layer}")
        return vectors if probe == PROBE else require_examples(vectors, self._path, probe)

    def value_norm_layers(self, stack: str = "model") -> tuple[int, ...]:
        """Blocks with value norms, counted from 1."""
        return self._numbers(f"{PROBE}/{stack}/value_norms/")

    def value_norms(self, layer: int, stack: str = "model") -> np.ndarray:
        """(n_tokens, n_heads) norms of the value vectors after each head's part of the output projection.

        Tokens are the real tokens of the :meth:`attention_examples`, one example after another.
        """
        return self._read(f"{PROBE}/{stack}/value_norms/{layer}")

    def pooler_output(self) -> np.ndarray | None:
        """(n_examples, d_model) what the pooler makes of each example, or ``None`` for a model without one."""
        name = f"{PROBE}/outputs/pooler_output"
        return self._read(name) if name in self._file else None

    def classifier_input(self) -> np.ndarray | None:
        """(n_examples, width) what the last linear layer of a classifier is given, or ``None`` where there is none.

        A decoder that classifies from its last token is given :meth:`pooled` ``("last", n_layers)``, which is not stored twice.
        """
        name = f"{PROBE}/outputs/classifier_input"
        return self._read(name) if name in self._file else None

    def outputs(self) -> Outputs | None:
        """What the model said about the probe examples, or ``None`` when it has no head."""
        prefix = f"{PROBE}/outputs/"
        for kind in ("logits", "nll", "token_logits"):
            if prefix + kind in self._file:
                values, offsets = self._read(prefix + kind), f"{prefix}{kind}_offsets"
                if offsets not in self._file:
                    return Outputs(kind, values)
                return Outputs(kind, values, require_offsets(self._read(offsets), len(values), self._path))
        return None

    def parameter_changes(self) -> dict[str, tuple[float, float]]:
        """L2 distance from step 0 and L2 norm of each recorded weight tensor, by name; empty when not recorded."""
        if "parameters/names" not in self._file:
            return {}
        distance, norm = self._read("parameters/distance"), self._read("parameters/norm")
        try:
            names = list(json.loads(self._read("parameters/names").tobytes()))
            return {str(name): (float(d), float(n)) for name, d, n in zip(names, distance, norm, strict=True)}
        except (ValueError, TypeError, RecursionError) as error:
            raise RunFormatError(f"{self._path}: `parameters` must name each weight tensor once; {error}") from error

    def resolution(self, quantity: str, layer: int, stack: str = "model") -> float:
        """Relative spacing of the stored numbers, such as 9.8e-4 for float16: what lies below cannot be seen.

        Parameters
        ----------
        quantity
            ``"hidden_states"``, ``"self_attention"``, ``"cross_attention"``, or ``"pooled/"`` and a kind of
            :meth:`pooled_kinds`, such as ``"pooled/first"``.
        layer, stack
            Which layer of which stack.
        """
        name = f"{PROBE}/{stack}/{quantity}/{layer}"
        self._require(name)
        return float(np.finfo(np.dtype(self._file.facts(name)["dtype"])).eps)

    def _numbers(self, prefix: str) -> tuple[int, ...]:
        tails = (name[len(prefix) :] for name in self._file.names if name.startswith(prefix))
        return tuple(sorted(int(tail) for tail in tails if re.fullmatch("0|[1-9][0-9]{0,5}", tail)))

    def _read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        self._require(name)
        return self._file.read(name, rows)

    def _require(self, name: str) -> None:
        if name not in self._file:
            folder = name.rpartition("/")[0] + "/"
            there = [other for other in self._file.names if other.startswith(folder)]
            raise RunFormatError(
                f"{self._path}: `{name}` must have been captured; this snapshot holds {there or 'nothing of the kind'}"
            )


class Run:
    """A run directory: provenance, probe set, steps, and a :class:`Snapshot` for each step. Read-only.

    Parameters
    ----------
    path, verify
        A run directory, and whether to check what is read; see :func:`open_run`.
    """

    def __init__(self, path: Path, *, verify: bool = False) -> None:
        require_run(path)
        self.path = path
        self._verify = verify
        if verify:
            require_intact_records(path)
        self.manifest: Mapping[str, Any] = read_manifest(path)
        self._snapshots: dict[int, Snapshot] = {}

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, steps={list(self.steps)})"

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.resolve().name

    @cached_property
    def probe_set(self) -> ProbeSet:
        """The inputs on which every snapshot was measured."""
        return read_probe_set(probe_path(self.path), verify=self._verify)

    @cached_property
    def probe_tasks(self) -> tuple[str, ...]:
        """Names of the tasks of which every snapshot keeps pooled vectors beside those of the main probe set."""
        return list_probe_tasks(self.path)

    def probe_task(self, name: str, split: str) -> ProbeSet:
        """Labelled examples of a probe task, of its split ``"train"`` or ``"test"``."""
        return read_labelled_set(probe_path(self.path, self._task_part(name, split)), verify=self._verify)

    def random_encoder(self, name: str, split: str, kind: str, layer: int, stack: str = "model") -> np.ndarray | None:
        """As :meth:`Snapshot.pooled` of a probe task, of the same architecture with random weights.

        What a probe finds there is in the inputs, not learned. ``None`` where it was not measured; a note says why.
        """
        part = self._task_part(name, split)
        for snapshot in self:
            if snapshot.pooled_kinds(RANDOM + stack, probe=part):
                return snapshot.pooled(kind, layer, RANDOM + stack, probe=part)
        return None

    def _task_part(self, name: str, split: str) -> str:
        if name not in self.probe_tasks or split not in TASK_SPLITS:
            raise UsageError(
                f"{self.path}: must be asked for train or test of its probe tasks {list(self.probe_tasks)}; got "
                f"{name!r}, {split!r}"
            )
        return task_part(name, split)

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """Steps with a snapshot, ascending."""
        return list_steps(self.path)

    @property
    def max_steps(self) -> int | None:
        """Number of steps the training was planned for, or ``None`` when unknown."""
        planned = self.manifest.get("max_steps")
        return planned if type(planned) is int and planned > 0 else None

    @property
    def stacks(self) -> tuple[str, ...]:
        """Stacks with anything stored: ``("model",)`` or ``("encoder", "decoder")``."""
        return self[self.steps[0]].stacks if self.steps else ()

    @cached_property
    def scalars(self) -> list[dict[str, Any]]:
        """What the trainer logged: one mapping per line, each with its ``step``."""
        return read_scalars(self.path)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the capture had to say, such as what the budget made smaller."""
        return tuple(str(note) for note in self.manifest.get("notes", ()))

    def __getitem__(self, step: int) -> Snapshot:
        if step not in self.steps:
            raise StepNotFoundError(f"{self.path}: `step` must be one of {list(self.steps)}; got {step}")
        return self._snapshots.setdefault(step, Snapshot(snapshot_path(self.path, step), verify=self._verify))

    def __iter__(self) -> Iterator[Snapshot]:
        return (self[step] for step in self.steps)

    def __len__(self) -> int:
        return len(self.steps)


def open_run(path: str | Path, *, verify: bool = False) -> Run:
    """Open a run directory.

    Parameters
    ----------
    path
        A folder written by ``dynprobe capture``, the Trainer callback or a Recorder.
    verify
        Whether to check manifest and ledger at once, and each array against its checksum when it is first read.

    Returns
    -------
    Run
        Its snapshots are read when they are asked for.

    Raises
    ------
    RunFormatError
        When the path is no run directory, or one of a later format; here or at a later read, when it is damaged.

    Examples
    --------
    >>> run = open_run("runs/seed-1")  # doctest: +SKIP
    >>> run[run.steps[-1]].hidden_states(6).shape  # doctest: +SKIP
    (8192, 384)
    """
    return Run(Path(path), verify=verify)
