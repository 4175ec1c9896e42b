"""What methods cost, in counted matrix products."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dynprobe import finetune
from dynprobe.finetune.cost import flops_per_batch

# Standard training is one forward (1) and one backward (2) pass.
RATIOS = [
    ("r3f", {}, 6 / 3),
    ("r3f", {"grad_through": "noisy"}, 6 / 3),
    ("r3f", {"grad_through": "clean"}, 4 / 3),
    ("rdrop", {}, 6 / 3),
    ("freelb", {"steps": 1}, 3 / 3),
    ("freelb", {"steps": 3}, 9 / 3),
    ("freelb", {"steps": 3, "as_released": True}, 12 / 3),
    ("smart", {"proximal_weight": 0.0}, 8 / 3),
    ("smart", {}, 9 / 3),
    ("smart", {"steps": 2, "proximal_weight": 0.0}, 10 / 3),
]


@pytest.mark.parametrize(("name", "options", "ratio"), RATIOS)
def test_cost_beside_standard_training(
    name: str, options: dict[str, Any], ratio: float, classifier_of: Callable[..., Any], batch: Callable[..., Any]
) -> None:
    model = classifier_of("bert", attn_implementation="eager").train()
    inputs = batch()
    standard = flops_per_batch(finetune.method("standard"), model, inputs)
    quiet = {} if name == "freelb" else {"share_every": 0}
    method = finetune.method(name, **options, **quiet).prepare(model)
    measured = flops_per_batch(method, model, inputs) / standard
    # Products of activations, in attention, have no weight whose gradient the way back to the noise could leave out.
    assert ratio - 0.01 <= measured <= ratio + (0.01 if name != "smart" else 0.04 * method.settings()["steps"])


def test_measuring_the_share_of_dropout_costs_a_forward_pass(
    classifier_of: Callable[..., Any], batch: Callable[..., Any]
) -> None:
    model = classifier_of("bert", attn_implementation="eager").train()
    inputs = batch()
    standard = flops_per_batch(finetune.method("standard"), model, inputs)
    method = finetune.method("r3f", share_every=2).prepare(model)
    costs = [flops_per_batch(method, model, inputs) / standard for _ in range(2)]
    assert costs == pytest.approx([7 / 3, 6 / 3], rel=0.02)
    assert all(parameter.grad is not None for parameter in model.parameters() if torch.is_floating_point(parameter))
