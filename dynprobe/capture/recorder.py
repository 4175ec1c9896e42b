"""The Recorder: takes snapshots of a live model into a run directory."""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from dynprobe.capture.architecture import Architecture, describe_model
from dynprobe.capture.guard import attention_implementation, reshard, set_eager_attention, undisturbed, unwrapped
from dynprobe.capture.manifest import contents_of, contents_said, versions
from dynprobe.capture.measure import find_taps, with_positions
from dynprobe.capture.plan import Plan, make_plan
from dynprobe.capture.probe_tasks import ProbeTasks, fingerprints
from dynprobe.capture.ranks import NoFile, Ranks
from dynprobe.capture.rehearsal import Rehearsal
from dynprobe.capture.settings import CaptureSettings, show_bytes
from dynprobe.capture.snapshot_writer import SnapshotJob, parameter_arrays, write_snapshot
from dynprobe.capture.taps import NO_TAPS, Taps
from dynprobe.capture.weights import StartingWeights
from dynprobe.errors import CaptureError, IncompatibleRunsError, RunFormatError, UsageError
from dynprobe.probe_set import ProbeSet
from dynprobe.probe_task import ProbeTask
from dynprobe.storage.claim import Claim, claim
from dynprobe.storage.directory import append_scalars, free_bytes, prepare, read_manifest, write_manifest, write_status
from dynprobe.storage.folder import list_steps
from dynprobe.storage.layout import probe_path, snapshot_path
from dynprobe.storage.probe_file import read_probe_set, write_probe_set

EXISTING = ("refuse", "resume", "replace")


class Recorder:
    """Takes snapshots of a model in training into a run directory; the training run does not notice.

    In a training of several processes each makes a Recorder and calls it at the same steps; only the first process (rank 0)
    writes. Where it holds the whole model it also measures alone, and the others do nothing; a model sharded by ``fully_shard``
    (FSDP2) is measured by all of them in step, and a fault of one is raised in all.

    Parameters
    ----------
    model
        A transformers model (also inside DataParallel, DistributedDataParallel, ``torch.compile`` or PEFT, or sharded by
        ``fully_shard``).
    probe_set
        The fixed inputs to measure it on.
    run_dir
        New folder for the run.
    settings
        What to keep; by default what fits 2 GB.
    max_steps
        Number of optimizer steps of the training, if known: the budget is then shared by the scheduled snapshots.
    facts
        JSON-able facts for the manifest, such as the seed and the hyperparameters.
    existing
        What to do with a run that is already in `run_dir`: ``"refuse"`` (an error), ``"resume"`` (go on with it) or
        ``"replace"``.
    on_snapshot
        Called with (step, path) after each snapshot.
    probe_tasks
        Labelled tasks, by name, of which each snapshot also keeps the pooled vectors of every layer, and the first one those of
        an encoder with random weights; see :func:`~dynprobe.tasks.probe_task`.

    Attributes
    ----------
    path
        The run directory.
    probe_set
        The inputs, with the positions that the model makes of them.
    plan
        What each snapshot holds.
    ranks
        Who measures and who writes, in a training of several processes.
    seconds
        Time spent on snapshots so far.

    Raises
    ------
    UsageError
        When `run_dir` holds a run and `existing` is "refuse", or another process writes to it.
    CaptureError
        When the model cannot be captured or the disk is too small.
    IncompatibleRunsError
        When the run to go on with has another probe set, another model or other amounts.

    Examples
    --------
    >>> with Recorder(model, probe_set, "runs/seed-1") as recorder:  # doctest: +SKIP
    ...     recorder.snapshot(0)
    ...     for step, batch in enumerate(loader, start=1):
    ...         train_on(batch)
    ...         if step % 100 == 0:
    ...             recorder.snapshot(step)
    """

    def __init__(  # noqa: PLR0913 - all that a capture can be told
        self,
        model: nn.Module,
        probe_set: ProbeSet,
        run_dir: str | Path,
        *,
        settings: CaptureSettings | None = None,
        max_steps: int | None = None,
        facts: Mapping[str, Any] | None = None,
        existing: str = "refuse",
        on_snapshot: Callable[[int, Path], None] | None = None,
        probe_tasks: Mapping[str, ProbeTask] | None = None,
    ) -> None:
        self.path = Path(run_dir)
        self._model = unwrapped(model)
        self._settings = settings or CaptureSettings()
        self._max_steps = max_steps
        self._facts = dict(facts or {})
        if existing not in EXISTING:
            raise UsageError(f"`existing` must be one of {EXISTING}; got {existing!r}")
        self._existing = existing
        self._on_snapshot = on_snapshot
        self._architecture = describe_model(self._model)
        self.ranks = Ranks.of(self._model)
        with self.ranks.together():
            self.ranks.require_same("probe set", f"{probe_set.fingerprint} {fingerprints(probe_tasks or {})}")
            with undisturbed(self._model) as guarded, self.ranks.in_step(guarded):
                self.probe_set = with_positions(guarded, probe_set, self._architecture)
                self._tasks = ProbeTasks(probe_tasks or {}, guarded, self._architecture, is_sharded=self.ranks.shared)
            self.plan: Plan = make_plan(
                self._architecture,
                self.probe_set,
                self._settings,
                max_steps=max_steps,
                probe_tasks=self._tasks.sizes,
                has_baseline=self._tasks.has_baseline,
            )
            contents = contents_of(self.plan, self._architecture)
            self.ranks.require_same("settings", f"{contents} {self.plan.steps} {self._settings.weights}")
        self._wide: set[str] = set()
        self._start: StartingWeights | None = None
        self._taps: Taps | None = None
        self._is_open = False
        self._lock: Claim | None = None
        self._state = "capturing"
        self._step: int | None = None  # of the snapshot that was begun last
        self._measures_weights = self._settings.weights and StartingWeights.fits(self._model)
        self._notes = [*self.plan.notes, *self._tasks.notes]
        self.seconds = 0.0

    @property
    def notes(self) -> tuple[str, ...]:
        """What the budget made smaller and what else a reader of the run should know."""
        return tuple(self._notes)

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps that have a snapshot in the run directory."""
        return list_steps(self.path)

    def __enter__(self) -> "Recorder":
        try:
            with self.ranks.together():
                if self.ranks.writes:
                    prepare(self.path, force=self._existing == "replace", resume=self._existing == "resume")
                    self._lock = claim(self.path)
                    self._open()
        except BaseException:
            self.close()
            raise
        self._is_open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.fault(str(error) or repr(error))
        self.close()

    def fault(self, reason: str) -> bool:
        """Say in the manifest why no more snapshots come; false when that cannot be written either, as on a full disk."""
        return self._end("fault", reason)

    def close(self, *, finished: bool = True) -> None:
        """Release the run directory, with the word that its training is over; every snapshot taken is already safe on disk."""
        if finished:
            self._end("finished")
        self._is_open = False
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def snapshot(self, step: int) -> Path:
        """Measure the model now and write it as the snapshot of `step`; does nothing when that one exists.

        Parameters
        ----------
        step
            Number of optimizer steps so far.

        Returns
        -------
        pathlib.Path
            The snapshot file.

        Raises
        ------
        CaptureError
            For NaN or Inf in the activations, or attention that is no probability.
        OSError
            When the disk is full; snapshots taken before are safe.
        """
        if not self._is_open:
            raise UsageError(
                "`snapshot` must be called between __enter__ and __exit__: `with Recorder(...) as recorder:`"
            )
        if step < 0:
            raise UsageError(f"`step` must be the number of optimizer steps so far, 0 or more; got {step}")
        path = snapshot_path(self.path, step)
        if self.ranks.measures:
            with self.ranks.together():
                self._take(step, path)
        return path

    def _take(self, step: int, path: Path) -> None:
        started, self._step = time.perf_counter(), step
        reshard(self._model)
        if step == 0 and self._measures_weights:
            self._start = StartingWeights(self._model)
        if self.ranks.decided(path.is_file()):
            return
        if self._start is None and self._measures_weights:
            self.note(
                f"Distances of the weights are not recorded from step {step} on: this process did not see step 0."
            )
        distances = self._start.distances(self._model, summed=self.ranks.summed) if self._start is not None else {}
        with undisturbed(self._model) as model, self.ranks.in_step(model):
            parameters = parameter_arrays(distances)
            if self._taps is None:
                self._taps = self._find_taps(model)
            open_file = self.ranks.open_file
            job = replace(self._job(), baseline=None if self.steps else self._tasks.random_encoder(model, self.note))
            write_snapshot(path, model, job, step=step, wide=self._wide, parameters=parameters, open_file=open_file)
        self.seconds += time.perf_counter() - started
        if self._on_snapshot is not None and self.ranks.writes:
            self._on_snapshot(step, path)

    def rehearse(self) -> Rehearsal:
        """Measure the model once and keep nothing: what a snapshot takes. The run directory is not touched, nor needed.

        Raises
        ------
        CaptureError
            As for :meth:`snapshot`.
        """
        with self.ranks.together(), undisturbed(self._model) as model, self.ranks.in_step(model):
            self._taps = self._taps or self._find_taps(model)
            started = time.perf_counter()
            write_snapshot(self.path, model, self._job(), step=0, wide=set(), parameters={}, open_file=NoFile)
            seconds = time.perf_counter() - started
        return Rehearsal(
            bytes_per_snapshot=self.plan.bytes_per_snapshot,
            n_snapshots=len(self.plan.steps) or None,
            free=free_bytes(self.path),
            seconds=seconds,
            n_examples=self.probe_set.n_examples,
            n_tokens=sum(self.probe_set.n_real_tokens(stack.name) for stack in self._architecture.stacks),
            notes=self.notes,
            probe_tasks=self._tasks.sizes,
            bytes_once=self.plan.bytes_once,
        )

    def exchange(self, load: Callable[[], nn.Module]) -> None:
        """Go on with other weights of the same architecture, such as the next checkpoint.

        Parameters
        ----------
        load
            Gives the model. The one before is let go first, so that only one is in memory.

        Raises
        ------
        IncompatibleRunsError
            When the model is of another class, or of other depth, width or number of heads.
        """
        self._model = nn.Module()
        model = unwrapped(load())
        architecture, before = describe_model(model), self._architecture
        if (architecture.model_class, architecture.stacks) != (before.model_class, before.stacks):
            raise IncompatibleRunsError(
                f"{self.path}: all snapshots of a run must be of one architecture, {_in_words(before)}; got "
                f"{_in_words(architecture)}. Capture the other one into another run directory"
            )
        self._model, self._architecture, self._taps = model, architecture, None

    def log(self, record: Mapping[str, Any]) -> None:
        """Append logged numbers (loss, learning rate, scores, with their ``step``) to the run's scalars."""
        self.ranks.write(lambda: append_scalars(self.path, record))

    def note(self, sentence: str) -> None:
        """Add a sentence that every reader of the run should see, and store it."""
        if sentence not in self._notes:
            self._notes.append(sentence)
            self.ranks.write(self._write_manifest)

    def _end(self, state: str, reason: str | None = None) -> bool:
        if self._lock is None or not self._is_open or self._state != "capturing":
            return True
        self._state = state
        try:
            write_status(self.path, state, step=self._step, reason=reason)
        except (OSError, RunFormatError):
            return False
        return True

    def _job(self) -> SnapshotJob:
        meta = {"probe_fingerprint": self.probe_set.fingerprint, "model": self._architecture.facts()}
        meta |= self._tasks.facts()
        return SnapshotJob(
            self._architecture, self.probe_set, self.plan, meta, self._taps or NO_TAPS, self._tasks.parts
        )

    def _find_taps(self, model: nn.Module) -> Taps:
        with_attention = self.plan.n_attention_examples > 0
        if with_attention:
            set_eager_attention(model)
        return find_taps(model, self.probe_set, self._architecture, attention=with_attention)

    def _open(self) -> None:
        file = probe_path(self.path)
        if file.is_file():
            there = read_probe_set(file).fingerprint
            if there != self.probe_set.fingerprint:
                raise IncompatibleRunsError(
                    f"{self.path}: a run must go on with its own probe set, fingerprint {there[:16]}; got one with "
                    f"{self.probe_set.fingerprint[:16]}. Give `--probe {self.path}`, or another run directory"
                )
        else:
            write_probe_set(file, self.probe_set)
        self._require_same_contents()
        self._tasks.keep(self.path)
        n_left = max(1, (len(self.plan.steps) or 1) - len(list_steps(self.path)))
        needed, free = self.plan.bytes_per_snapshot * n_left, free_bytes(self.path)
        needed += 0 if self.steps else self.plan.bytes_once
        if needed > free:
            raise CaptureError(
                f"{self.path}: the disk must have {show_bytes(needed)} free for {n_left} snapshot(s); got "
                f"{show_bytes(free)}. Give a smaller --budget, or a folder on another disk"
            )
        if not self._measures_weights:
            self._notes.append("Distances of the weights from step 0 were not recorded.")
        self._write_manifest()

    def _require_same_contents(self) -> None:
        """Snapshots of one run must hold the same layers, tokens and examples, or they cannot be compared."""
        before, now = contents_said(read_manifest(self.path)), contents_of(self.plan, self._architecture)
        if self.steps and before is not None and before != now:
            others = [
                f"{name} {now.get(name)} instead of {old}" for name, old in before.items() if now.get(name) != old
            ]
            raise IncompatibleRunsError(
                f"{self.path}: a run must go on with the same model and amounts; got {', '.join(others)}. Give the model and "
                "the options (--hidden, --attention, --layers, --probe-task ...) of its first part, or another run directory"
            )

    def _write_manifest(self) -> None:
        before = read_manifest(self.path)
        notes = [*before.get("notes", []), *self._notes]
        write_manifest(
            self.path,
            {
                "created": before.get("created", datetime.now(UTC).isoformat(timespec="seconds")),
                "model": self._architecture.facts(),
                "attention_implementation": attention_implementation(self._model),
                "dtype": str(next(self._model.parameters()).dtype).removeprefix("torch."),
                "probe_fingerprint": self.probe_set.fingerprint,
                "label_fingerprint": self.probe_set.label_fingerprint,
                "probe_origin": self.probe_set.origin,
                "n_examples": self.probe_set.n_examples,
                "max_steps": self._max_steps,
                "schedule": self._settings.schedule,
                "planned_steps": list(self.plan.steps),
                "contents": contents_of(self.plan, self._architecture),
                "bytes_per_snapshot": self.plan.bytes_per_snapshot,
                "training": self._facts or before.get("training", {}),
                "command": sys.argv,
                "threads": torch.get_num_threads(),
                "versions": versions(),
                "notes": list(dict.fromkeys(notes)),
                "status": {"state": "capturing", "reason": None, "step": None},
            },
        )


def _in_words(architecture: Architecture) -> str:
    stacks = (f"{s.n_layers} blocks, {s.n_heads} heads, width {s.d_model} ({s.name})" for s in architecture.stacks)
    return f"{architecture.model_class} with {' and '.join(stacks)}"
