"""SMART: the ball, the teacher, gradients by hand; what mt-dnn does otherwise."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dynprobe import finetune
from dynprobe.finetune.divergences import symmetric_kl
from dynprobe.finetune.embeddings import perturbed, word_embeddings
from dynprobe.finetune.passes import Passes
from dynprobe.finetune.smart import SMART, per_token_direction
from dynprobe.finetune.streams import Stream

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture
def exact(classifier_of: Callable[..., Any]) -> Any:
    return classifier_of("bert", **NO_DROPOUT).double().train()


def worst(method: SMART, model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """The noise that the next batch gets; draws it."""
    passes = Passes(model, inputs, Stream("x", 0), dropout="shared")
    return method._worst(passes, word_embeddings(model), model(**inputs).logits.detach(), 1.0)


@pytest.mark.parametrize("steps", [1, 3])
def test_noise_stays_in_the_ball_and_off_padding(steps: int, exact: Any, batch: Callable[..., Any]) -> None:
    inputs = batch()
    delta = worst(SMART(eps=1e-3, step_size=1e-2, steps=steps).prepare(exact), exact, inputs)
    assert float(delta.abs().max()) == pytest.approx(1e-3)
    assert bool((delta[inputs["attention_mask"] == 0] == 0).all())
    assert bool((delta[inputs["attention_mask"] == 1] != 0).any(dim=-1).all())


def test_a_step_by_hand(exact: Any, batch: Callable[..., Any]) -> None:
    inputs, method = batch(), SMART(eps=0.01, step_size=2e-3, noise_std=1e-3)
    mask = inputs["attention_mask"][..., None]
    start = (1e-3 * torch.randn(6, 7, 16, generator=Stream("noise", 0).generator("cpu")) * mask).requires_grad_()
    clean = exact(**inputs).logits.detach()
    with perturbed(word_embeddings(exact), start):
        value = symmetric_kl(clean, exact(**inputs).logits).mean()
    (gradient,) = torch.autograd.grad(value, start)
    largest = gradient.abs().amax(dim=-1, keepdim=True)
    expected = (start.detach() + 2e-3 * gradient / largest.clamp_min(1e-30)).clamp(-0.01, 0.01)
    torch.testing.assert_close(worst(method.prepare(exact), exact, inputs), expected)


def test_a_step_climbs(exact: Any, batch: Callable[..., Any]) -> None:
    inputs = batch()
    values = []
    for step_size in (0.0, 1e-2):
        method = SMART(eps=1e-2, step_size=step_size, noise_std=1e-3, proximal_weight=0.0).prepare(exact)
        values.append(float(method.loss(exact, inputs).terms["divergence"]))
    assert values[1] > 10 * values[0]


def test_directions_without_a_gradient_stand_still() -> None:
    gradient = torch.tensor([[[2.0, -4.0], [0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0]]])
    assert per_token_direction(gradient).tolist() == [[[0.5, -1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]]


def test_value_and_gradient_by_hand(exact: Any, batch: Callable[..., Any]) -> None:
    inputs, options = batch(), {"eps": 0.01, "step_size": 0.02, "weight": 3.0, "proximal_weight": 0.5}
    method = SMART(**options).prepare(exact)
    with torch.no_grad():
        teacher_logits = exact(**inputs).logits
        for parameter in exact.parameters():
            parameter *= 1.1
    delta = worst(SMART(**options).prepare(exact), exact, inputs)
    step = method.loss(exact, inputs)
    found = torch.autograd.grad(step.loss, list(exact.parameters()))
    clean = exact(**inputs)
    with perturbed(word_embeddings(exact), delta):
        other = exact(**inputs).logits
    smoothness = symmetric_kl(clean.logits, other).mean()
    proximal = symmetric_kl(clean.logits, teacher_logits).mean()
    loss = clean.loss + 3 * smoothness + 0.5 * proximal
    torch.testing.assert_close(step.loss, loss)
    torch.testing.assert_close(found, torch.autograd.grad(loss, list(exact.parameters())))
    torch.testing.assert_close(step.terms, {"divergence": smoothness.detach(), "proximal": proximal.detach()})


def test_teacher_starts_where_the_model_is_also_with_dropout(
    classifier_of: Callable[..., Any], batch: Callable[..., Any]
) -> None:
    model = classifier_of("bert").train()
    step = SMART().prepare(model).loss(model, batch())
    assert float(step.terms["proximal"]) == 0  # the same dropout masks, so the same function


def test_teacher_follows_with_its_momentum(exact: Any) -> None:
    method = SMART(momentum=0.75, late_momentum=0.5, late_after=2).prepare(exact)
    expected = exact.classifier.weight.detach().clone()
    for momentum in (0.75, 0.75, 0.5):
        with torch.no_grad():
            exact.classifier.weight += 1
        expected = momentum * expected + (1 - momentum) * exact.classifier.weight.detach()
        method.after_step(exact)
    torch.testing.assert_close(method.state_dict()["teacher.classifier.weight"], expected)


def test_teacher_of_half_precision_weights_moves(classifier_of: Callable[..., Any]) -> None:
    model = classifier_of("bert").to(torch.bfloat16)
    method = SMART(eps=0.1, momentum=0.999).prepare(model)
    before = method.state_dict()["teacher.classifier.weight"].clone()
    with torch.no_grad():
        model.classifier.weight += 1e-2
    method.after_step(model)
    after = method.state_dict()["teacher.classifier.weight"]
    assert after.dtype == torch.float32
    assert bool((after != before).all())


def test_a_loop_that_forgets_the_teacher_is_told(exact: Any, batch: Callable[..., Any]) -> None:
    method = SMART().prepare(exact)
    optimizer = torch.optim.AdamW(exact.parameters(), lr=1e-3)
    method.loss(exact, batch()).loss.backward()
    method.loss(exact, batch()).loss.backward()  # accumulation is no step
    optimizer.step()
    method.after_step(exact)
    method.loss(exact, batch()).loss.backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"`after_step\(model\)` must be called after each optimizer step"):
        method.loss(exact, batch())
    with pytest.raises(RuntimeError, match=r"`prepare\(model\)` must be called before the first loss"):
        SMART().loss(exact, batch())


def test_state_goes_on_where_it_was(classifier_of: Callable[..., Any], batch: Callable[..., Any]) -> None:
    model = classifier_of("bert").train()
    first = SMART(seed=3, late_after=1).prepare(model)
    with torch.no_grad():
        model.classifier.weight += 1
    first.after_step(model)
    _ = first.loss(model, batch())
    second = SMART(late_after=1).prepare(model)
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        model.classifier.weight += 1
    for method in (first, second):
        method.after_step(model)
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
    losses = []
    for method in (first, second):
        torch.manual_seed(0)
        losses.append(method.loss(model, batch()).loss)
    assert torch.equal(*losses)


def test_regression(classifier_of: Callable[..., Any], batch: Callable[..., Any]) -> None:
    model = classifier_of("bert", num_labels=1, **NO_DROPOUT).double().train()
    inputs = batch() | {"labels": torch.rand(6, dtype=torch.float64)}
    for as_released in (False, True):
        method = SMART(eps=0.01, as_released=as_released, proximal_weight=0.0).prepare(model)
        assert float(method.loss(model, inputs).terms["divergence"]) > 0


def test_released_noise_ends_with_maximum_one_whatever_its_size(
    exact: Any, batch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Tensor] = []
    again = Passes.again

    def spy(self: Passes, *args: Any, **kwargs: Any) -> Tensor:
        given.append(kwargs["inputs"]["inputs_embeds"].detach())
        return again(self, *args, **kwargs)

    monkeypatch.setattr(Passes, "again", spy)
    inputs = batch()
    for eps in (1e-6, 1e-3):
        given.clear()
        SMART(eps=eps, as_released=True).prepare(exact).loss(exact, inputs)
        embedded = exact.bert.embeddings(input_ids=inputs["input_ids"]).detach()
        largest = (given[-1] - embedded).abs().amax(dim=-1)
        assert float(largest.min()) > 0.9 if eps == 1e-6 else float(largest.min()) < 0.9
        assert bool((largest[inputs["attention_mask"] == 0] > 0).all())  # padding too


def test_released_embeds_twice_and_differs(exact: Any, batch: Callable[..., Any]) -> None:
    inputs = batch()
    embedded = exact.bert.embeddings(input_ids=inputs["input_ids"])
    twice = exact(inputs_embeds=embedded, attention_mask=inputs["attention_mask"]).logits
    assert not torch.allclose(twice, exact(**inputs).logits)
    right, released = (
        SMART(proximal_weight=0.0, as_released=as_released).prepare(exact).loss(exact, inputs)
        for as_released in (False, True)
    )
    assert float(released.terms["divergence"]) > 1e4 * float(right.terms["divergence"])
    assert (released.extra_forwards, released.extra_backwards) == (2, 2)
    released.loss.backward()


def test_released_needs_an_encoder_that_classifies(
    classifier_of: Callable[..., Any], batch: Callable[..., Any]
) -> None:
    with pytest.raises(ValueError, match=r"must have a layer `embeddings` .*got GPT2ForSequenceClassification. Leave"):
        SMART(as_released=True).prepare(classifier_of("gpt2"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": -1.0}, r"`eps` must be a finite number at least 0"),
        ({"step_size": float("nan")}, r"`step_size` must be a finite number"),
        ({"noise_std": 0.0}, r"`noise_std` must be a finite number above 0 and at most 10; got 0.0"),
        ({"steps": 0}, r"`steps` must be a finite number at least 1 and at most 100; got 0"),
        ({"momentum": 1.5}, r"`momentum` must be .* at most 1; got 1.5"),
        ({"late_after": -1}, r"`late_after` must be a finite number at least 0"),
        ({"proximal_weight": -0.1}, r"`proximal_weight` must be a finite number at least 0"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        finetune.method("smart", **options)
