"""What the paper and its critics claim of isotropy, as claims about paired trainings."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dynprobe.experiments.claims import SHARES, Claim
from dynprobe.experiments.grid import cells_of
from dynprobe.experiments.isotropy_tables import GIVEN, RETURNED, isotropy_frame

MARGIN = 0.02
NONE, BATCH, ISO, RELEASED = "none", "batch-norm", "isobn", "isobn-released"
_EARLY = 0.25  # share of the training in which a cold start would show

Results = Sequence[Mapping[str, Any]]


def claims(results: Results, model: str) -> list[Claim]:
    """What the paper and its critics claim, as far as the arms of one model can tell."""
    own = [result for result in cells_of(results) if result["model"] == model]
    found = [*_isotropy_claims(isotropy_frame(own)), *_training_claims(own)]
    return [claim for claim in found if claim.values and claim.others]


def _isotropy_claims(frame: pd.DataFrame) -> Iterator[Claim]:
    def of(arm: str, column: str, *, vector: str = RETURNED, tuned: bool = True) -> dict[int, float]:
        part = frame[(frame["arm"] == arm) & (frame["vector"] == vector) & (frame["tuned"] == tuned)]
        return dict(zip(part["seed"], part[column], strict=True))

    for column, words in (("share_1", "EV₁"), ("uncentred_1", "EV₁ with the mean left in")):
        iso, given = of(ISO, column), of(ISO, column, vector=GIVEN)
        yield _lower(f"{words} falls from before the IsoBN layer to after it", iso, given)
        yield _lower(f"{words} is lower with IsoBN than without a norm", iso, of(NONE, column))
        yield _lower(f"{words} is lower with IsoBN than with batch norm", iso, of(BATCH, column))
    yield Claim(
        text="The dimensions are less correlated, mean |ρ|, in a model trained with IsoBN than in one without a norm",
        values=of(ISO, "correlation"),
        others=of(NONE, "correlation"),
        direction=-1,
    )
    before, after = (of(NONE, "share_1", tuned=tuned) for tuned in (False, True))
    yield Claim(text="Fine-tuning without a norm raises EV₁", values=after, others=before, direction=1, unit=SHARES)


def _lower(text: str, values: Mapping[int, float], others: Mapping[int, float]) -> Claim:
    return Claim(text=text, values=values, others=others, direction=-1, unit=SHARES)


def _training_claims(own: Results) -> Iterator[Claim]:
    """Claims about accuracy and speed."""

    def of(arm: str, value: Callable[[Mapping[str, Any]], float]) -> dict[int, float]:
        return {result["seed"]: value(result["stages"][0]) for result in own if result["arm"] == arm}

    stage = own[0]["stages"][0]
    evaluated = [0, *stage["evaluations"]["step"]]
    iso = of(ISO, _accuracy)
    for text, values, others, direction in (
        ("Accuracy is higher with IsoBN than without a norm", iso, of(NONE, _accuracy), 1),
        ("Accuracy is higher with IsoBN than with batch norm", iso, of(BATCH, _accuracy), 1),
        ("The cold start of the released code costs accuracy", of(RELEASED, _accuracy), iso, -1),
    ):
        step = 1 / stage["n_test"]
        yield Claim(
            text=text, values=values, others=others, direction=direction, margin=MARGIN, resolution=step, unit=SHARES
        )
    yield Claim(
        text="The best validation accuracy is reached in fewer steps with IsoBN than without a norm",
        values=of(ISO, steps_to_best), others=of(NONE, steps_to_best), direction=-1,
        resolution=float(evaluated[1] - evaluated[0]), unit="steps", digits=0,
    )  # fmt: skip
    yield Claim(
        text=f"The cold start of the released code raises the training loss of the first {100 * _EARLY:g} % of the steps",
        values=of(RELEASED, early_loss), others=of(ISO, early_loss), direction=1, unit="nats",
    )  # fmt: skip


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
