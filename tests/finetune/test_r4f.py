"""R4F: heads that cannot amplify; saved, reloaded and resumed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch.nn.utils import parametrize

from dynprobe.finetune.r4f import R4F
from dynprobe.finetune.spectral import SpectralNorm, head_weights

HEADS = {
    "bert": ["classifier"],
    "roberta": ["classifier.dense", "classifier.out_proj"],
    "electra": ["classifier.dense", "classifier.out_proj"],
    "distilbert": ["pre_classifier", "classifier"],
    "mpnet": ["classifier.dense", "classifier.out_proj"],
    "deberta": ["pooler.dense", "classifier"],
    "deberta-v2": ["pooler.dense", "classifier"],
    "gpt2": ["score"],
    "llama": ["score"],
    "t5": ["classification_head.dense", "classification_head.out_proj"],
    "bart": ["classification_head.dense", "classification_head.out_proj"],
}


def largest(weight: torch.Tensor) -> float:
    return float(torch.linalg.svdvals(weight.detach().double())[0])


@pytest.mark.parametrize("family", HEADS)
def test_every_weight_of_the_head_is_bounded(
    family: str, classifier_of: Callable[..., Any], batch: Callable[..., Any]
) -> None:
    model = classifier_of(family).train()
    names = [name for name, _ in model.named_parameters()]
    parameters = {id(parameter) for parameter in model.parameters()}
    state = torch.get_rng_state()
    method = R4F().prepare(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert {
        id(parameter) for parameter in model.parameters()
    } == parameters  # an optimizer made before still holds them
    assert sum("parametrizations" in name for name, _ in model.named_parameters()) == len(HEADS[family])
    for name in HEADS[family]:
        assert f"{name}.weight" in names
        assert largest(model.get_submodule(name).weight) == pytest.approx(1, abs=1e-6)
    method.loss(model, batch()).loss.backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
    optimizer.step()
    for name in HEADS[family]:
        assert largest(model.get_submodule(name).weight) == pytest.approx(1, abs=1e-6)


def test_head_does_not_amplify(classifier_of: Callable[..., Any]) -> None:
    model = classifier_of("roberta").eval()
    with torch.no_grad():
        model.classifier.dense.weight *= 100
        model.classifier.out_proj.weight *= 100
    u, v = torch.randn(2, 50, 1, 16, generator=torch.Generator().manual_seed(0))
    before = (model.classifier(u) - model.classifier(v)).norm(dim=-1)
    R4F().prepare(model)
    after = (model.classifier(u) - model.classifier(v)).norm(dim=-1)
    bound = (u - v).norm(dim=-1)[:, 0]
    assert bool((after <= bound * (1 + 1e-5)).all())
    assert bool((before > bound).any())


def test_gradient_flows_through_the_singular_value() -> None:
    weight = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(SpectralNorm(weight.detach()), (weight,))
    (gradient,) = torch.autograd.grad(SpectralNorm(weight.detach())(weight).square().sum(), weight)
    assert float((gradient * weight.detach()).sum()) == pytest.approx(
        0, abs=1e-12
    )  # scaling the weight changes nothing


def test_repeated_singular_values_have_a_gradient() -> None:
    weight = torch.eye(3, requires_grad=True)
    SpectralNorm(weight.detach())(weight).sum().backward()
    assert weight.grad is not None
    assert bool(weight.grad.isfinite().all())
    assert bool(SpectralNorm(torch.zeros(2, 2))(torch.zeros(2, 2)).isfinite().all())


def test_power_iteration_approaches_from_above() -> None:
    weight = torch.randn(2, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    norm = SpectralNorm(weight, iterations=1, generator=torch.Generator().manual_seed(0)).train()
    norms = [largest(norm(weight)) for _ in range(200)]
    assert norms[0] > 1.001
    assert all(value >= 1 - 1e-6 for value in norms)
    assert norms[-1] < norms[0]
    assert norms[-1] == pytest.approx(1, abs=1e-4)
    norm.eval()
    assert torch.equal(norm(weight), norm(weight))


def test_released_normalises_only_the_last_weight(classifier_of: Callable[..., Any], batch: Callable[..., Any]) -> None:
    model = classifier_of("roberta").train()
    with torch.no_grad():
        model.classifier.dense.weight *= 100
    method = R4F(as_released=True).prepare(model)
    assert not parametrize.is_parametrized(model.classifier.dense)
    assert largest(model.classifier.dense.weight) > 1
    method.loss(model, batch()).loss.backward()
    assert largest(model.classifier.out_proj.weight) > 1 + 1e-5  # one power iteration per pass


def test_saved_models_are_plain_and_say_the_same(
    tmp_path: Path, classifier_of: Callable[..., Any], batch: Callable[..., Any]
) -> None:
    model = classifier_of("roberta")
    R4F().prepare(model)
    model.save_pretrained(tmp_path)
    again = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert not any("parametrizations" in name for name in again.state_dict())
    inputs = batch()
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(**inputs).logits, model.eval()(**inputs).logits, rtol=1e-5, atol=1e-7)
    fresh = classifier_of("roberta", seed=1)
    R4F().prepare(fresh)
    fresh.load_state_dict(model.state_dict())  # into a prepared model, strictly
    with torch.no_grad():
        torch.testing.assert_close(fresh.eval()(**inputs).logits, model(**inputs).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"power_iterations": 2}])
def test_state_holds_the_weights_behind(
    options: dict[str, Any], classifier_of: Callable[..., Any], batch: Callable[..., Any]
) -> None:
    model, other = classifier_of("bert").train(), classifier_of("bert", seed=1).train()
    with torch.no_grad():
        model.classifier.weight *= 7
    first, second = R4F(**options).prepare(model), R4F(**options).prepare(other)
    _ = first.loss(model, batch())
    other.load_state_dict(model.state_dict())
    raw = "parametrizations.weight.original"
    assert not torch.equal(other.classifier.get_parameter(raw), model.classifier.get_parameter(raw))
    second.load_state_dict(first.state_dict())
    assert torch.equal(other.classifier.get_parameter(raw), model.classifier.get_parameter(raw))
    assert torch.equal(other.eval().classifier.weight, model.eval().classifier.weight)
    assert second.state_dict().keys() == first.state_dict().keys()


def test_heads_that_cannot_be_normalised(classifier_of: Callable[..., Any]) -> None:
    tied = tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1))
    bare = tf.BertModel(
        tf.BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    )
    for model in (tied, bare):
        with pytest.raises(
            ValueError, match=r"must have a head with weights of its own .*; got \w+, where there are none"
        ):
            R4F().prepare(model)
    model = classifier_of("bert")
    assert list(head_weights(model)) == ["classifier"]
    R4F().prepare(model)
    with pytest.raises(
        ValueError, match=r"`classifier.weight` must not be parametrised yet; got one that is. Normalise a head once"
    ):
        R4F().prepare(model)
    with pytest.raises(ValueError, match=r"`power_iterations` must be a finite number at least 0"):
        R4F(power_iterations=-1)
