"""What the paper and its critics claim of isotropy, as claims about paired trainings."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from dynprobe.experiments.isotropy_tables import GIVEN, RETURNED, isotropy_frame
from dynprobe.experiments.over_seeds import SHARES, OverSeeds, larger, smaller
from dynprobe.experiments.results import Results, cells_of
from dynprobe.experiments.statements import Statement

MARGIN = 0.02
NONE, BATCH, ISO, RELEASED = "none", "batch-norm", "isobn", "isobn-released"
_EARLY = 0.25  # share of the training in which a cold start would show

# Text, which way, both sides, and what is too small to matter.
_Claim = tuple[str, Callable[..., Statement], OverSeeds, OverSeeds, float]


def claims(results: Results, model: str) -> list[Statement]:
    """What the paper and its critics claim, as far as the arms of one model can tell; to be judged together."""
    own = [result for result in cells_of(results) if result["model"] == model]
    found = [*_isotropy_claims(isotropy_frame(own)), *_training_claims(own)]
    return [way(text, x, y, margin=margin) for text, way, x, y, margin in found if x.values and y.values]


def _isotropy_claims(frame: pd.DataFrame) -> Iterator[_Claim]:
    def of(arm: str, column: str, *, vector: str = RETURNED, tuned: bool = True) -> OverSeeds:
        part = frame[(frame["arm"] == arm) & (frame["vector"] == vector) & (frame["tuned"] == tuned)]
        unit = "" if column == "correlation" else SHARES
        return OverSeeds(values=dict(zip(part["seed"], part[column], strict=True)), unit=unit)

    for column, words in (("share_1", "EV₁"), ("uncentred_1", "EV₁ with the mean left in")):
        iso, given = of(ISO, column), of(ISO, column, vector=GIVEN)
        yield f"{words} falls from before the IsoBN layer to after it", smaller, iso, given, 0.0
        yield f"{words} is lower with IsoBN than without a norm", smaller, iso, of(NONE, column), 0.0
        yield f"{words} is lower with IsoBN than with batch norm", smaller, iso, of(BATCH, column), 0.0
    text = "The dimensions are less correlated, mean |ρ|, in a model trained with IsoBN than in one without a norm"
    yield text, smaller, of(ISO, "correlation"), of(NONE, "correlation"), 0.0
    before, after = (of(NONE, "share_1", tuned=tuned) for tuned in (False, True))
    yield "Fine-tuning without a norm raises EV₁", larger, after, before, 0.0


def _training_claims(own: Results) -> Iterator[_Claim]:
    """Claims about accuracy and speed."""
    stage = own[0]["stages"][0]
    evaluated = [0, *stage["evaluations"]["step"]]
    gap = float(evaluated[1] - evaluated[0])

    def of(arm: str, value: Callable[[Mapping[str, Any]], float], **more: Any) -> OverSeeds:
        values = {result["seed"]: value(result["stages"][0]) for result in own if result["arm"] == arm}
        return OverSeeds(values=values, **more)

    none, batch, iso, released = (
        of(arm, _accuracy, resolution=1 / stage["n_test"], unit=SHARES) for arm in (NONE, BATCH, ISO, RELEASED)
    )
    yield "Accuracy is higher with IsoBN than without a norm", larger, iso, none, MARGIN
    yield "Accuracy is higher with IsoBN than with batch norm", larger, iso, batch, MARGIN
    yield "The cold start of the released code costs accuracy", smaller, released, iso, MARGIN
    text = "The best validation accuracy is reached in fewer steps with IsoBN than without a norm"
    steps = (of(arm, steps_to_best, resolution=gap, unit="steps", digits=0) for arm in (ISO, NONE))
    yield text, smaller, *steps, 0.0
    text = f"The cold start of the released code raises the training loss of the first {100 * _EARLY:g} % of the steps"
    yield text, larger, of(RELEASED, early_loss, unit="nats"), of(ISO, early_loss, unit="nats"), 0.0


def _accuracy(stage: Mapping[str, Any]) -> float:
    return float(stage["scores"].get("test_accuracy", stage["scores"]["eval_accuracy"]))


def steps_to_best(stage: Mapping[str, Any]) -> float:
    """The first evaluation with the best validation accuracy."""
    found = stage["evaluations"]
    return float(found["step"][int(np.argmax(found["eval_accuracy"]))])


def early_loss(stage: Mapping[str, Any]) -> float:
    """Mean training loss of the first quarter of the steps."""
    kept = [
        loss
        for step, loss in zip(stage["training"]["step"], stage["training"]["loss"], strict=True)
        if step <= _EARLY * stage["setup"]["max_steps"] and loss is not None
    ]
    return float(np.mean(kept)) if kept else float("nan")
