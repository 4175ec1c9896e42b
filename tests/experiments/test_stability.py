"""How a training went over seeds: which never fitted, how long its steps were."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import get_linear_schedule_with_warmup

from dynprobe.experiments.stability import (
    arms_of,
    as_guessing,
    best_curve,
    cells_by_arm,
    mean_loss,
    mean_ratio,
    moved,
    pulled_share,
    scheduled_rates,
    trial_frame,
)

SETUP = {"task": "t", "max_steps": 60, "warmup_ratio": 0.1, "learning_rate": 0.01}


def cell(arm: str, seed: int, score: float, losses: list[float | None], *, n_stages: int = 1) -> dict[str, Any]:
    stage = {
        "setup": {**SETUP, "max_steps": len(losses)},
        "scores": {"eval_accuracy": score, "test_accuracy": score},
        "training": {"step": list(range(1, len(losses) + 1)), "loss": losses},
        "distances": {"block_1": score, "block_2": 2 * score, "embeddings": 9.0, "other": 9.0},
        "n_classes": 2, "n_test": 100, "majority": 0.5, "seconds": 1.0,
    }  # fmt: skip
    return {"model": "m", "arm": arm, "seed": seed, "stages": [stage] * n_stages}


def test_a_run_that_stays_at_guessing_never_fitted() -> None:
    near = 0.9 * math.log(2)
    cells = [
        cell("a", 0, 0.9, [0.7, 0.7, 0.7, near - 1e-9]),
        cell("a", 1, 0.5, [0.1, 0.1, 0.1, near + 1e-9]),
        cell("a", 2, 0.5, [0.7, 0.7, 0.7, None]),
        cell("b", 0, 0.9, [0.7, 0.5, 0.1, 0.1], n_stages=2),
    ]
    frame = trial_frame(cells)
    assert frame["fitted"].tolist() == [True, False, False, True]
    assert frame["final_loss"].tolist()[2] == math.inf
    assert frame["early_loss"].tolist()[3] == pytest.approx(0.6)
    assert frame["paired"].tolist() == [True, True, True, False]
    arms = arms_of(cells)["m"]
    assert as_guessing(arms["a"]) == (False, True, True)
    assert as_guessing(arms["a"].assign(majority=np.nan)) is None
    assert cells_by_arm(cells, "m")["b"] == cells[3:]


def test_a_loss_that_was_never_logged_is_not_known() -> None:
    assert math.isnan(mean_loss(cell("a", 0, 0.5, [1.0])["stages"][0], 0.0, 0.5))


def test_distances_are_those_of_the_blocks() -> None:
    table = moved(cells_by_arm([cell("a", 0, 0.5, [1.0]), cell("a", 3, 0.25, [1.0])], "m"))["a"]
    assert table.columns.tolist() == ["block_1", "block_2"]
    assert table.loc[3].tolist() == [0.25, 0.5]


def test_rates_are_those_of_the_training() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, 6, 60)
    rates = []
    for _ in range(60):
        rates += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    assert scheduled_rates(SETUP) == pytest.approx(rates, rel=1e-12)


def test_the_mean_ratio_is_that_of_the_published_settings() -> None:
    known = {234: 3.95, 345: 3.38, 540: 2.79, 804: 2.36}  # three epochs of RTE, MRPC, STS-B and CoLA
    assert {n: round(mean_ratio({**SETUP, "max_steps": n}), 2) for n in known} == known


def test_a_training_of_one_step_has_a_ratio() -> None:
    assert mean_ratio({**SETUP, "max_steps": 1, "warmup_ratio": 1.0}) == pytest.approx(math.sqrt(10), rel=1e-9)


def test_the_pull_is_the_product_of_its_steps() -> None:
    assert pulled_share(SETUP, 0.5) == pytest.approx(1 - np.prod(1 - 0.5 * scheduled_rates(SETUP)), rel=1e-9)


def test_the_best_of_more_runs_is_better() -> None:
    cells = [cell("a", seed, score, [1.0]) for seed, score in enumerate((0.1, 0.2, 0.3))]
    assert best_curve(arms_of(cells)["m"]["a"]) == pytest.approx([0.2, 0.8 / 3, 0.3])
