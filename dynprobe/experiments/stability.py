"""How stable a training is over seeds: which runs never fitted their examples, and how long its steps were."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dynprobe.experiments.over_seeds import SHARES, OverSeeds
from dynprobe.experiments.results import Results, cells_of
from dynprobe.experiments.tables import last_stages, score_frame
from dynprobe.finetune import bias_correction_ratio
from dynprobe.metrics import best_of_n, failed_runs

# Arm to its cells.
Cells = Mapping[str, Sequence[Mapping[str, Any]]]

# A run whose last training loss is above this share of ln C, the loss of guessing among C classes, never fitted.
NEAR_GUESSING = 0.9
_LAST, _FIRST = 0.25, 0.5  # shares of the training


def trial_frame(results: Results) -> pd.DataFrame:
    """One row per cell: scores of its last training, and how its training loss went.

    Parameters
    ----------
    results
        Of :func:`~dynprobe.experiments.grid.run_experiment`.

    Returns
    -------
    pandas.DataFrame
        As :func:`~dynprobe.experiments.tables.score_frame`, with ``final_loss`` and ``early_loss`` (mean training loss of the
        last quarter and of the first half of the steps; infinite where it was not finite), ``guessing`` (ln C), ``fitted``
        (whether the final loss is at most nine tenths of that) and ``paired`` (whether a seed means what it means in a single
        training: not so after an earlier stage).
    """
    frame = last_stages(score_frame(results))
    cells = {(cell["model"], cell["arm"], cell["seed"]): cell["stages"] for cell in cells_of(results)}
    stages = [cells[row.model, row.arm, row.seed] for row in frame.itertuples()]
    frame["final_loss"] = [mean_loss(own[-1], 1 - _LAST, 1.0) for own in stages]
    frame["early_loss"] = [mean_loss(own[-1], 0.0, _FIRST) for own in stages]
    frame["guessing"] = [math.log(own[-1]["n_classes"]) for own in stages]
    frame["fitted"] = frame["final_loss"] <= NEAR_GUESSING * frame["guessing"]
    frame["paired"] = [len(own) == 1 for own in stages]
    return frame


def arms_of(results: Results) -> dict[str, dict[str, pd.DataFrame]]:
    """Model, and arm, to its rows of :func:`trial_frame`."""
    frame = trial_frame(results)
    return {
        str(model): {str(arm): own for arm, own in part.groupby("arm", sort=False)}
        for model, part in frame.groupby("model", sort=False)
    }


def over_seeds(own: pd.DataFrame, column: str = "score") -> OverSeeds:
    """A column of the rows of one arm, by seed.

    Parameters
    ----------
    own
        Rows of :func:`trial_frame`.
    column
        Which; a ``score`` is shown as a share, with steps of its ``resolution``.
    """
    values, paired = dict(zip(own["seed"], own[column], strict=True)), bool(own["paired"].all())
    if column != "score":
        return OverSeeds(values=values, paired=paired)
    return OverSeeds(values=values, paired=paired, resolution=float(own["resolution"].iloc[0]), unit=SHARES)


def moved(cells: Cells) -> dict[str, pd.DataFrame]:
    """How far the weights of each block moved in the last training: for each arm, seeds by blocks, L2 distance."""
    found = {}
    for arm, own in cells.items():
        rows = {cell["seed"]: cell["stages"][-1]["distances"] for cell in own}
        found[arm] = pd.DataFrame.from_dict(rows, orient="index").filter(regex="^block_")
    return found


def cells_by_arm(results: Results, model: str) -> Cells:
    """The cells of a model: arm to its cells, a cell for each seed."""
    own = [cell for cell in cells_of(results) if cell["model"] == model]
    return {arm: [cell for cell in own if cell["arm"] == arm] for arm in dict.fromkeys(cell["arm"] for cell in own)}


def best_curve(own: pd.DataFrame) -> np.ndarray:
    """Expected test score of the run that validates best among 1, 2, ... of the runs."""
    validation, test = own["validation"].to_numpy(), own["score"].to_numpy()
    return np.array([best_of_n(validation, test, n).mean for n in range(1, len(own) + 1)])


def epochs_of(setup: Mapping[str, Any]) -> str:
    """How often each training example is seen, where their number is known."""
    n = setup["train_examples"]
    return f"{setup['max_steps'] * setup['batch_size'] / n:.3g}" if n else "–"


def as_guessing(own: pd.DataFrame) -> tuple[bool, ...] | None:
    """Which runs score at most two points above the commonest class; ``None`` for regression."""
    majority = own["majority"].iloc[0]
    return failed_runs(own["score"].to_numpy(), float(majority)).failed if pd.notna(majority) else None


def last_setup(cells: Cells, arm: str = "adam") -> Mapping[str, Any]:
    """How the last training of an arm was done."""
    found: Mapping[str, Any] = cells[arm][0]["stages"][-1]["setup"]
    return found


def mean_loss(stage: Mapping[str, Any], since: float, until: float) -> float:
    """Mean training loss over a part of a training.

    Parameters
    ----------
    stage
        A training, of a cell's ``stages``.
    since, until
        Shares of its steps, 0 to 1; the loss logged at a step is of the steps up to it.

    Returns
    -------
    float
        Infinite where a loss was not finite; NaN where none was logged.

    Examples
    --------
    >>> stage = {"setup": {"max_steps": 4}, "training": {"step": [1, 2, 3, 4], "loss": [4.0, 3.0, 2.0, 1.0]}}
    >>> mean_loss(stage, 0.5, 1.0)
    1.5
    """
    steps = stage["setup"]["max_steps"]
    logged = zip(stage["training"]["step"], stage["training"]["loss"], strict=True)
    kept = [math.inf if loss is None else loss for step, loss in logged if since * steps < step <= until * steps]
    return float(np.mean(kept)) if kept else math.nan


def scheduled_rates(setup: Mapping[str, Any]) -> np.ndarray:
    """Learning rate of each step: from 0 up over the warm-up, then down to 0.

    Parameters
    ----------
    setup
        Of a training of the results.

    Returns
    -------
    ndarray
        (max_steps,).

    Examples
    --------
    >>> scheduled_rates({"max_steps": 4, "warmup_ratio": 0.5, "learning_rate": 1.0}).tolist()
    [0.0, 0.5, 1.0, 0.5]
    """
    n = setup["max_steps"]
    warm = round(setup["warmup_ratio"] * n)
    steps = np.arange(n, dtype=float)
    up, down = steps / max(1, warm), (n - steps) / max(1, n - warm)
    return np.asarray(setup["learning_rate"] * np.where(steps < warm, up, down))


def mean_ratio(setup: Mapping[str, Any]) -> float:
    """How many times longer BERTAdam's steps are over a whole training: the mean of r(t), weighted by the learning rate."""
    rates = scheduled_rates(setup)
    ratios = np.array([bias_correction_ratio(step) for step in range(1, len(rates) + 1)])
    return float(rates @ ratios / rates.sum()) if rates.any() else float(ratios.mean())


def pulled_share(setup: Mapping[str, Any], strength: float) -> float:
    """Share of its way back that a weight without a gradient goes in a whole training: 1 - Π (1 - η λ).

    Parameters
    ----------
    setup
        Of a training of the results.
    strength
        λ of weight decay, or of the pull towards the start.
    """
    return float(-np.expm1(np.log1p(-scheduled_rates(setup) * strength).sum()))
