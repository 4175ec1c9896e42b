"""Whether training destroyed what pretraining knew: linear probes of other tasks, at every step and layer."""

from collections.abc import Sequence

from dynprobe.analysis.catalog import KNOWLEDGE, describe
from dynprobe.analysis.knowledge import DEFAULT_MARGIN, require_margin
from dynprobe.analysis.knowledge_findings import knowledge_findings
from dynprobe.analysis.moments import Moment, ends_of
from dynprobe.analysis.probe_fits import places_of
from dynprobe.analysis.probe_labels import require_fractions
from dynprobe.analysis.probe_readings import Plan, read_tasks
from dynprobe.analysis.probe_rows import accuracy_rows, change_rows, difference_rows
from dynprobe.analysis.progress import Progress
from dynprobe.errors import UsageError
from dynprobe.result import Result, tidy


def probe_suite(  # noqa: PLR0913 - all that the probes of a run can be told
    moments: Sequence[Moment],
    *,
    tasks: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    fractions: Sequence[float] = (1.0,),
    n_seeds: int = 1,
    control: bool = True,
    margin: float = DEFAULT_MARGIN,
    level: float = 0.95,
    progress: Progress | None = None,
) -> Result:
    """Accuracy of linear probes on the probe tasks of runs, and what training changed in it.

    For each snapshot, task and layer a multinomial logistic regression is fitted on the task's training examples and scored on
    its test examples, which it never sees otherwise. Its L2 penalty is chosen for each layer on folds of the training examples;
    examples with the same first text share a fold.

    Parameters
    ----------
    moments
        Snapshots of one or more runs.
    tasks
        Names of probe tasks; all that the runs captured when ``None``.
    layers
        Only these; all when ``None``.
    fractions
        Shares of the training examples to fit on, in (0, 1].
    n_seeds
        Number of training subsets of each fraction below 1. With several, intervals cover the choice of the subset among the
        training examples as well as the test examples.
    control
        Whether to fit labels drawn by lot for words as well, at the first and the last snapshot of each run: each word has one
        label, and a token of each example decides.
    margin
        Largest change in accuracy that counts as none.
    level
        Confidence level.
    progress
        Called with (done, total, label) after each snapshot and task.

    Returns
    -------
    Result
        Rows by layer ("knowledge_by_layer", column ``position`` the kind of pooled vector), and at the last layer and the best
        one ("knowledge_accuracy", ``position`` "last layer" or "best layer", the place in ``reason``); ``group`` is the task,
        ``chance`` the share of the commonest test label, ``reference`` what the same architecture with random weights gives.
        The best layer is chosen for each snapshot on its training folds. "knowledge_change" is the change since step 0 and
        "knowledge_difference" the first run against each other at their ends, both on the same test examples. The ``reason`` of
        a change holds its verdict, and says where the pretrained encoder was not clearly above chance, or not above an encoder
        with random weights. Status "not-captured", "undefined" or "insufficient-sample" where a task cannot be probed.

    Raises
    ------
    UsageError
        For a task or a layer that was not captured.
    ValueError
        For fractions, seeds or a margin out of range.

    Notes
    -----
    Intervals are Wilson's for an accuracy and Tango's (1998) for a change, with counts divided by the design effect of examples
    that share a text (Rao and Scott 1992). With one fit they hold for the probe that was fitted on these training examples.
    Selectivity after Hewitt and Liang (2019), "Designing and Interpreting Probes with Control Tasks". Aghajanyan et al. (2020)
    probe the [CLS] vector of the last layer.

    Examples
    --------
    >>> probe_suite(moments(run)).findings[0]  # doctest: +SKIP
    'seed-1: what the pretrained encoder knew of wic was degraded at the last layer: ...'
    """
    plan = Plan(require_fractions(fractions, n_seeds), n_seeds, control, require_margin(margin), level, layers)
    names = _task_names(moments, tasks)
    _require_layers(moments, names, layers)
    readings, refused = read_tasks(moments, names, plan, progress=progress)
    rows = [
        *refused,
        *(row for reading in readings for row in accuracy_rows(reading, plan)),
        *change_rows(readings, plan),
        *difference_rows(readings, plan),
    ]
    table = tidy(rows)
    said = knowledge_findings(
        table, tuple(dict.fromkeys(moment.name for moment in moments)), margin=margin, level=level
    )
    notes = (_note(plan),) if readings else ()
    return Result("Knowledge of other tasks", table, describe(KNOWLEDGE), findings=said, notes=notes)


def _note(plan: Plan) -> str:
    """What the intervals cover."""
    over = "the test examples of each task"
    if plan.n_seeds > 1 and min(plan.fractions) < 1:
        over += f" and, below all training examples, over {plan.n_seeds} choices among them"
    return (
        f"Intervals of the accuracy on other tasks are over {over}; examples that share a text count as one where they go "
        "together. Another set of training examples would move the probes by more."
    )


def _task_names(moments: Sequence[Moment], asked: Sequence[str] | None) -> tuple[str, ...]:
    there = tuple(dict.fromkeys(task for moment in moments for task in moment.run.probe_tasks))
    if asked is None:
        return there
    names = (asked,) if isinstance(asked, str) else tuple(dict.fromkeys(asked))
    if unknown := [name for name in names if name not in there]:
        captured = ", ".join(there) or "none; name them when capturing: --probe-task NAME"
        raise UsageError(f"`tasks` must be among the probe tasks that were captured ({captured}); got {unknown[0]!r}")
    return names


def _require_layers(moments: Sequence[Moment], tasks: Sequence[str], layers: Sequence[int] | None) -> None:
    if layers is None:
        return
    there = {
        place.layer
        for moment in ends_of(moments)
        for task in tasks
        if task in moment.run.probe_tasks
        for place in places_of(moment, task)
    }
    if unknown := [layer for layer in layers if layer not in there]:
        raise UsageError(f"`layers` must be among those that were captured, {sorted(there)}; got {unknown[0]}")
