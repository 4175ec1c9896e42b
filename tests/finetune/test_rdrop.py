"""R-Drop: by hand, and what the published code does otherwise."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dynprobe.finetune.divergences import squared_difference, symmetric_kl
from dynprobe.finetune.rdrop import RDrop
from dynprobe.finetune.streams import Stream


def two_passes(model: Any, inputs: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    first = model(**inputs)
    with Stream("dropout of extra passes", 0).in_charge("cpu"):
        return first, model(**inputs)


def test_by_hand(classifier_of: Callable[..., Any], batch: Callable[..., Any]) -> None:
    model, inputs = classifier_of("bert").double().train(), batch()
    first, second = two_passes(model, inputs)
    divergence = symmetric_kl(first.logits, second.logits).mean()
    assert float(divergence.detach()) > 0
    expected = (first.loss + second.loss) / 2 + 5.0 * divergence / 2
    torch.manual_seed(0)
    step = RDrop(weight=5.0).prepare(model).loss(model, inputs)
    torch.testing.assert_close(step.loss, expected)
    found = torch.autograd.grad(step.loss, list(model.parameters()))
    torch.testing.assert_close(found, torch.autograd.grad(expected, list(model.parameters())))
    torch.testing.assert_close(step.terms["divergence"], divergence.detach())
    assert (step.extra_forwards, step.extra_backwards, step.dropout_share) == (1, 1, 1.0)


def test_as_released(classifier_of: Callable[..., Any], batch: Callable[..., Any]) -> None:
    model, inputs = classifier_of("bert").double().train(), batch()
    first, second = two_passes(model, inputs)
    torch.manual_seed(0)
    step = RDrop(weight=5.0, as_released=True).prepare(model).loss(model, inputs)
    divergence = symmetric_kl(first.logits, second.logits).mean()
    torch.testing.assert_close(step.loss, first.loss + second.loss + 5.0 * divergence / 2)


@pytest.mark.parametrize("as_released", [False, True])
def test_regression(as_released: bool, classifier_of: Callable[..., Any], batch: Callable[..., Any]) -> None:
    model = classifier_of("bert", num_labels=1).double().train()
    inputs = batch() | {"labels": torch.rand(6, dtype=torch.float64)}
    first, second = two_passes(model, inputs)
    torch.manual_seed(0)
    step = RDrop(weight=5.0, as_released=as_released).prepare(model).loss(model, inputs)
    difference = squared_difference(first.logits, second.logits).mean()
    expected = first.loss + 5 * difference if as_released else (first.loss + second.loss) / 2 + 2.5 * difference
    torch.testing.assert_close(step.loss, expected)


def test_needs_dropout(classifier_of: Callable[..., Any]) -> None:
    still = classifier_of("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    with pytest.raises(ValueError, match="the model must have dropout for R-Drop; got none"):
        RDrop().prepare(still)
    with pytest.raises(ValueError, match="`dropout` must be 'independent' for R-Drop; got 'shared'"):
        RDrop(dropout="shared")
    for family in ("bert", "gpt2", "t5", "distilbert"):
        RDrop().prepare(classifier_of(family))
