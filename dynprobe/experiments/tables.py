"""Tables of an experiment's results: one row per training, and each arm beside the first."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from dynprobe.errors import DynprobeError
from dynprobe.experiments.results import Results, cells_of, pairs_of
from dynprobe.metrics import failed_runs, holm, paired_difference, summarise_trials, verdict, welch_difference

# In place of a verdict: scores on different examples are not compared.
OTHER_TASK = "another task"


def score_frame(results: Results) -> pd.DataFrame:
    """One row per training of each cell: model, arm, seed, stage, task, its scores, the share of the commonest class.

    Parameters
    ----------
    results
        Of :func:`~dynprobe.experiments.grid.run_experiment`.

    Returns
    -------
    pandas.DataFrame
        ``score`` is the accuracy on the test split, or for regression minus the mean squared error; ``validation`` the same on
        the validation split; ``n_test`` how many examples it is measured on; ``resolution`` the step of the score.
        Other columns are as in the results.
    """
    rows = [
        {
            "model": result["model"],
            "arm": result["arm"],
            "seed": result["seed"],
            "stage": number,
            "task": stage["setup"]["task"],
            "score": _score(stage["scores"], "test"),
            "validation": _score(stage["scores"], "eval"),
            "majority": stage["majority"],
            "n_test": stage["n_test"],
            "resolution": 1.0 / stage["n_test"] if _is_accuracy(stage["scores"]) else 0.0,
            "kept_step": stage["scores"].get("kept_step"),
            "seconds": stage["seconds"],
        }
        for result in cells_of(results)
        for number, stage in enumerate(result["stages"])
    ]
    return pd.DataFrame(rows)


def pair_frame(results: Results) -> pd.DataFrame:
    """One row per value that a comparison of trainings gave: which trainings, which snapshots, which layer.

    Parameters
    ----------
    results
        Of :func:`~dynprobe.experiments.grid.run_experiment`.

    Returns
    -------
    pandas.DataFrame
        ``pair``, ``model``, ``arm_a``, ``seed_a``, ``arm_b``, ``seed_b``, and the columns of
        :func:`~dynprobe.experiments.pair_work.run_comparison`'s ``rows``. Empty where nothing was compared.
    """
    names = ("pair", "model", "arm_a", "seed_a", "arm_b", "seed_b")
    parts = [
        pd.DataFrame(result["rows"]).assign(**{name: result[name] for name in names}) for result in pairs_of(results)
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(names))


def last_stages(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last training of each cell."""
    last = frame.groupby(["model", "arm", "seed"])["stage"].transform("max")
    return frame[frame["stage"] == last].reset_index(drop=True)


def arm_table(frame: pd.DataFrame, *, reference: str | None = None, margin: float = 0.02) -> pd.DataFrame:
    """Each arm of each model: scores over the seeds, and the difference from the reference, paired where a seed means the same.

    Parameters
    ----------
    frame
        One row per model, arm and seed, as :func:`last_stages` gives it.
    reference
        The arm that the others are compared with; by default the first.
    margin
        What is small enough not to matter, in the unit of the score.

    Returns
    -------
    pandas.DataFrame
        ``n``, ``mean``, ``sd``, ``median``, ``min``, ``max``; ``failed`` (share of runs at most two points above the commonest
        class); ``difference``, ``low``, ``high`` (95 %), ``paired`` by seed, or by Welch's test where an arm has another number
        of trainings before it, so that a seed means another head and another order; ``p`` corrected by Holm for the arms of a
        model; ``verdict`` as :func:`~dynprobe.metrics.verdict` words it, or "another task". Empty for the reference itself.

    Raises
    ------
    DynprobeError
        When the reference is missing, or an arm has not the seeds that it is to be paired by.
    """
    rows = []
    for model, of_model in frame.groupby("model", sort=False):
        arms = {str(arm): part.set_index("seed") for arm, part in of_model.groupby("arm", sort=False)}
        first = reference or next(iter(arms))
        if first not in arms:
            raise DynprobeError(f"model {model}: must have the arm {first!r} to compare with; got {', '.join(arms)}")
        compared = [_arm_row(str(model), arm, part, arms[first], margin) for arm, part in arms.items()]
        tested = [row["p"] for row in compared if "p" in row]
        corrected = iter(holm(tested) if tested else ())
        rows += [{**row, "p": float(next(corrected))} if "p" in row else row for row in compared]
    return pd.DataFrame(rows)


def _arm_row(model: str, arm: str, part: pd.DataFrame, reference: pd.DataFrame, margin: float) -> dict[str, Any]:
    scores, step = part["score"].to_numpy(), float(part["resolution"].iloc[0])
    row: dict[str, Any] = {"model": model, "arm": arm, "n": len(scores), "mean": scores.mean()}
    if len(scores) > 1:
        found = summarise_trials(scores, resolution=step)
        row |= {"sd": found.sd, "median": found.median, "min": found.minimum, "max": found.maximum}
    majority = part["majority"].iloc[0]
    if majority is not None and majority == majority:
        row["failed"] = failed_runs(scores, float(majority)).share
    if part is reference:
        return row
    shared = [seed for seed in part.index if seed in reference.index]
    if len(shared) < len(part):
        raise DynprobeError(
            f"model {model}, arm {arm}: must have been trained with seeds of the arm it is compared with; "
            f"got {sorted(set(part.index) - set(shared))} besides"
        )
    if set(part["task"]) != set(reference["task"]) or set(part["n_test"]) != set(reference["n_test"]):
        row["verdict"] = OTHER_TASK
    elif len(shared) > 1:
        one, other = part.loc[shared, "score"].to_numpy(), reference.loc[shared, "score"].to_numpy()
        paired = set(part["stage"]) == set(reference["stage"])
        gap = (paired_difference if paired else welch_difference)(one, other, resolution=step)
        row |= {"difference": gap.difference, "low": gap.low, "high": gap.high, "p": gap.p_two_sided, "paired": paired}
        row["verdict"] = verdict((gap.low, gap.high), margin)
    return row


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for a README; the first column is text, the others are set to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def points(value: float | None, *, sign: bool = False) -> str:
    """A share as percentage points, or a dash where there is none.

    Examples
    --------
    >>> points(0.7312), points(-0.004, sign=True), points(None)
    ('73.1', '-0.4', '–')
    """
    if value is None or value != value:
        return "–"
    return f"{100 * value:+.1f}" if sign else f"{100 * value:.1f}"


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """A difference of shares in percentage points with its interval, or a dash where there is none.

    Examples
    --------
    >>> interval(0.012, -0.001, 0.025)
    '+1.2 [-0.1, +2.5]'
    """
    if value is None or value != value:
        return points(None)
    return f"{points(value, sign=True)} [{points(low, sign=True)}, {points(high, sign=True)}]"


def versions_of(results: Results) -> str:
    """The versions that results were made with, in words; of each kind of them where they are not all the same."""
    kinds = dict.fromkeys(tuple(result["versions"].items()) for result in results)
    return "; or with ".join(", ".join(f"{name} {number}" for name, number in kind) for kind in kinds)


def _is_accuracy(scores: Mapping[str, float]) -> bool:
    return any(name.endswith("_accuracy") for name in scores)


def _score(scores: Mapping[str, float], split: str) -> float | None:
    """Higher is better; of the validation split where there is no test split."""
    for name in (split, "eval"):
        if f"{name}_accuracy" in scores:
            return scores[f"{name}_accuracy"]
        if f"{name}_mean_squared_error" in scores:
            return -scores[f"{name}_mean_squared_error"]
    return None
