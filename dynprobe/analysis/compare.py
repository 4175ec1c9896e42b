"""Two runs compared: each against its own start, and run against run."""

from collections.abc import Sequence
from dataclasses import dataclass

from dynprobe.analysis.alignment import align_steps
from dynprobe.analysis.attention import attention_js
from dynprobe.analysis.catalog import ATTENTION, ISOTROPY, KNOWLEDGE, METRICS, OUTPUTS, PROBING, SIMILARITY
from dynprobe.analysis.findings import findings
from dynprobe.analysis.isotropy import isotropy
from dynprobe.analysis.matching import require_comparable
from dynprobe.analysis.moments import (
    Moment,
    Pair,
    consecutive_pairs,
    moments,
    pairs_between,
    pairs_from_start,
    run_names,
)
from dynprobe.analysis.outputs import output_changes
from dynprobe.analysis.probe_suite import probe_suite
from dynprobe.analysis.probing import probe_accuracy
from dynprobe.analysis.progress import Progress
from dynprobe.analysis.provenance import provenance
from dynprobe.analysis.scores import output_scores
from dynprobe.analysis.similarity import hidden_state_similarity
from dynprobe.errors import UsageError
from dynprobe.result import Result, merge
from dynprobe.run import Run


def compare(
    run_a: Run,
    run_b: Run,
    *,
    metrics: Sequence[str] | None = None,
    specials: bool = False,
    standardize: bool = False,
    level: float = 0.95,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Compare two runs that were measured on the same probe set: each against its own start, and one against the other.

    Parameters
    ----------
    run_a, run_b
        Two runs, such as two seeds or two methods; also one run twice.
    metrics
        Names from :data:`dynprobe.analysis.catalog.METRICS`; all that the runs were captured for when ``None``, but for SVCCA
        of layers wider than 1024 features, which takes minutes.
    specials
        Whether special tokens such as [CLS] and [SEP] take part in attention and hidden-state comparisons.
    standardize
        Whether every feature of the hidden states is divided by its standard deviation before SVCCA and CKA.
    level
        Confidence level of all intervals.
    seed
        Seed of all resampling.
    progress
        Called with (done, total, label) as the work goes on.

    Returns
    -------
    Result
        One row per measured value, findings in plain words, layer by layer maps, notes and provenance. The comparisons are
        "from_start" (a run against its first snapshot), "consecutive" (against the snapshot before, outputs only),
        "between" (run against run at aligned steps) and "within" (a value of one snapshot).

    Raises
    ------
    IncompatibleRunsError
        When the probe sets differ or there is nothing in common to compare.
    UsageError
        For an unknown metric, or a level outside 0..1.

    Examples
    --------
    >>> result = compare(open_run("runs/seed-1"), open_run("runs/seed-2"))  # doctest: +SKIP
    >>> result.findings[0]  # doctest: +SKIP
    'Against its start, seed-1 changed attention most in layer 6: ...'
    """
    chosen = _chosen(metrics, with_tasks=bool(run_a.probe_tasks or run_b.probe_tasks))
    if not 0 < level < 1:
        raise UsageError(f"`level` must be a confidence level between 0 and 1, such as 0.95; got {level}")
    require_comparable(run_a, run_b)
    names = run_names([run_a.path, run_b.path])
    try:
        options = _Options(specials, standardize, level, seed, metrics is not None, progress)
        results = _results(_scope(run_a, run_b, names), chosen, options)
    finally:
        for run in (run_a, run_b):
            for snapshot in run:
                snapshot.close()
    merged = merge(f"{names[0]} and {names[1]}", results)
    table = merged.table[merged.table["metric"].isin(chosen)]
    asked = {"metrics": list(chosen), "specials": specials, "standardize": standardize, "level": level, "seed": seed}
    return Result(
        title=merged.title,
        table=table,
        metrics={name: METRICS[name] for name in chosen if name in set(table["metric"])},
        arrays=merged.arrays,
        findings=findings(table, names, level=level),
        notes=tuple(dict.fromkeys((*_notes(run_a, run_b, names), *merged.notes))),
        provenance=provenance(dict(zip(names, (run_a, run_b), strict=True)), asked),
    )


def _chosen(metrics: Sequence[str] | None, *, with_tasks: bool) -> tuple[str, ...]:
    if metrics is None:
        return tuple(name for name in METRICS if with_tasks or name not in KNOWLEDGE)
    names = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        raise UsageError(f"`metrics` must be names among {', '.join(METRICS)}; got {unknown or 'none'}")
    return tuple(name for name in METRICS if name in names)


@dataclass(frozen=True)
class _Options:
    specials: bool
    standardize: bool
    level: float
    seed: int
    by_name: bool
    progress: Progress | None


@dataclass(frozen=True)
class _Scope:
    """Which snapshots and pairs are looked at."""

    moments: tuple[Moment, ...]
    pairs: tuple[Pair, ...]
    consecutive: tuple[Pair, ...]


def _scope(run_a: Run, run_b: Run, names: tuple[str, ...]) -> _Scope:
    named = list(zip((run_a, run_b), names, strict=True))
    starts = [pair for run, name in named for pair in pairs_from_start(run, name=name)]
    return _Scope(
        moments=tuple(moment for run, name in named for moment in moments(run, name=name)),
        pairs=(*starts, *pairs_between(run_a, run_b, names=(names[0], names[1]))),
        consecutive=tuple(pair for run, name in named for pair in consecutive_pairs(run, name=name)),
    )


def _results(scope: _Scope, chosen: Sequence[str], options: _Options) -> list[Result]:
    level, progress = options.level, options.progress
    parts = {
        group: tuple(name for name in group if name in chosen)
        for group in (ATTENTION, SIMILARITY, ISOTROPY, PROBING, KNOWLEDGE, OUTPUTS)
    }
    results = []
    if parts[OUTPUTS]:
        pairs = (*scope.pairs, *scope.consecutive)
        results.append(output_changes(pairs, level=level, seed=options.seed, progress=progress))
        results.append(output_scores(scope.moments, level=level, seed=options.seed))
    if parts[ATTENTION]:
        results.append(
            attention_js(scope.pairs, specials=options.specials, level=level, seed=options.seed, progress=progress)
        )
    if parts[SIMILARITY]:
        results.append(
            hidden_state_similarity(
                scope.pairs,
                specials=options.specials,
                level=level,
                metrics=parts[SIMILARITY] if options.by_name else None,
                standardize=options.standardize,
                progress=progress,
            )
        )
    if parts[ISOTROPY]:
        results.append(isotropy(scope.moments, level=level, metrics=parts[ISOTROPY], progress=progress))
    if parts[PROBING]:
        results.append(probe_accuracy(scope.moments, level=level, progress=progress))
    if parts[KNOWLEDGE]:
        results.append(probe_suite(scope.moments, level=level, progress=progress))
    return results


def _notes(run_a: Run, run_b: Run, names: tuple[str, ...]) -> list[str]:
    """What a reader must know before the numbers: alignment, labels, what each capture had to say."""
    notes = list(align_steps(run_a.steps, run_b.steps, max_steps=(run_a.max_steps, run_b.max_steps)).notes)
    for run, name in zip((run_a, run_b), names, strict=True):
        if run.steps[0] != 0:
            notes.append(f"{name} has no snapshot of step 0; its start is step {run.steps[0]}.")
    ours, theirs = run_a.probe_set, run_b.probe_set
    if ours.label_fingerprint != theirs.label_fingerprint:
        notes.append(
            "The runs have different labels for the same inputs, so each is scored by its own and their scores are not "
            "compared."
        )
    for run, name in zip((run_a, run_b), names, strict=True):
        origin = str(run.manifest.get("probe_origin", run.probe_set.origin))
        if "training" in origin:
            notes.append(
                f"{name}: the probe inputs come from {origin}, so scores on them are no measure of generalisation."
            )
        notes += [f"{name}: {note}" for note in run.notes]
    return notes
