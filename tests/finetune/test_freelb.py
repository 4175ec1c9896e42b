"""FreeLB: plain training as a special case, gradients by an explicit loop, bounds of the noise, loss scaling."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dynprobe import finetune
from dynprobe.finetune.deferred import with_gradients
from dynprobe.finetune.embeddings import perturbed, word_embeddings
from dynprobe.finetune.freelb import FreeLB
from dynprobe.finetune.streams import Stream

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture
def exact(classifier_of: Callable[..., Any]) -> Any:
    return classifier_of("bert", **NO_DROPOUT).double().train()


def gradients(model: Any) -> list[Tensor]:
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    return found


def lengths(delta: Tensor, norm: str) -> Tensor:
    flat = delta.flatten(1)
    return flat.norm(dim=1) if norm == "l2" else flat.abs().amax(dim=1)


@pytest.mark.parametrize("steps", [1, 3])
def test_without_noise_it_is_plain_training(
    steps: int, classifier_of: Callable[..., Any], batch: Callable[..., Any]
) -> None:
    model, inputs = classifier_of("bert").train(), batch()  # with dropout, whose masks all passes share
    torch.manual_seed(0)
    plain = model(**inputs).loss
    plain.backward()
    expected = gradients(model)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    step = FreeLB(steps=steps, step_size=0.0, init_magnitude=0.0).prepare(model).loss(model, inputs)
    step.loss.backward()
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(step.loss, plain, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradients(model), expected, rtol=1e-5, atol=1e-8)
    assert (step.extra_forwards, step.extra_backwards) == (steps - 1, steps - 1)
    if steps == 1:
        assert torch.equal(step.loss, plain)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("as_released", [False, True])
def test_gradients_are_the_mean_over_an_explicit_loop(
    norm: str,
    as_released: bool,
    exact: Any,
    batch: Callable[..., Any],
) -> None:
    inputs = batch()
    options = {"step_size": 0.2, "init_magnitude": 0.3, "max_norm": 0.25, "norm": norm}
    method = FreeLB(steps=3, as_released=as_released, **options).prepare(exact)
    step = method.loss(exact, inputs)
    step.loss.backward()
    found = gradients(exact)
    mask = inputs["attention_mask"][..., None].double()
    delta = 2 * torch.rand(6, 7, 16, generator=Stream("noise", 0).generator("cpu")) - 1
    delta = delta * 0.3 * mask
    if norm == "l2":
        delta = delta / (mask.sum(1, keepdim=True) * 16).sqrt()
    losses, n_passes = [], 4 if as_released else 3
    for _ in range(n_passes):
        assert bool(
            (delta[mask[..., 0] == 0] == 0).all()
        )  # also as released: attention keeps the gradient from padding
        delta = delta.detach().requires_grad_()
        with perturbed(word_embeddings(exact), delta):
            loss = exact(**inputs).loss
        (loss / n_passes).backward()  # accumulates in the weights
        losses.append(float(loss.detach()))
        assert delta.grad is not None
        delta = delta.detach() + 0.2 * delta.grad / lengths(delta.grad, norm)[:, None, None]
        too_long = (lengths(delta, norm) / 0.25).clamp_min(1)[:, None, None]
        delta = delta / too_long if norm == "l2" else delta.clamp(-0.25, 0.25)
        assert float(lengths(delta, norm).max()) <= 0.25 * (1 + 1e-12)
    torch.testing.assert_close(found, gradients(exact), rtol=1e-5, atol=1e-9)  # the noise itself is drawn in float32
    assert float(step.loss.detach()) == pytest.approx(sum(losses) / n_passes, rel=1e-6)
    assert float(step.task) == pytest.approx(losses[0], rel=1e-6)
    assert float(step.regulariser) == pytest.approx(sum(losses) / n_passes - losses[0], rel=1e-4)
    assert losses[1] > losses[0]  # it climbs


def test_composes_with_loss_scaling_and_accumulation(exact: Any, batch: Callable[..., Any]) -> None:
    scaled, plain = FreeLB().prepare(exact), FreeLB().prepare(exact)
    plain.loss(exact, batch()).loss.backward()
    plain.loss(exact, batch(seed=1)).loss.backward()
    expected = gradients(exact)
    for seed in (0, 1):  # as a GradScaler does it
        step = scaled.loss(exact, batch(seed=seed), loss_scale=2.0**16)
        (step.loss * 2.0**16 / 2).backward()
    torch.testing.assert_close([value / 2.0**15 for value in gradients(exact)], expected)


def test_overflow_reaches_the_scaler(exact: Any, batch: Callable[..., Any]) -> None:
    def overflowing(model: Any, inputs: Any) -> tuple[Tensor, Any]:
        outputs = model(**inputs)
        return outputs.loss * float("inf"), outputs

    step = FreeLB(steps=2).prepare(exact).loss(exact, batch(), overflowing)
    step.loss.backward()
    assert not all(bool(value.isfinite().all()) for value in gradients(exact))


def test_autocast(classifier_of: Callable[..., Any], batch: Callable[..., Any]) -> None:
    model, inputs = classifier_of("bert", **NO_DROPOUT).train(), batch()
    values = []
    for enabled in (False, True):
        method = FreeLB().prepare(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            step = method.loss(model, inputs)
        step.loss.backward()
        values.append((float(step.loss.detach()), torch.cat([value.flatten() for value in gradients(model)])))
    assert values[1][0] == pytest.approx(values[0][0], rel=2**-7)
    assert float(torch.cosine_similarity(values[0][1], values[1][1], dim=0)) > 0.99


def test_frozen_and_unused_weights(exact: Any, batch: Callable[..., Any]) -> None:
    for parameter in exact.bert.embeddings.parameters():
        parameter.requires_grad = False
    exact.unused = torch.nn.Parameter(torch.ones(2))
    FreeLB().prepare(exact).loss(exact, batch()).loss.backward()
    assert exact.unused.grad is None
    assert exact.get_input_embeddings().weight.grad is None
    assert exact.classifier.weight.grad is not None


def test_known_gradients_as_a_term_of_a_loss() -> None:
    weight = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    other = torch.ones(3, dtype=torch.float64, requires_grad=True)
    term = with_gradients(torch.tensor(5.0), [weight, other], [torch.tensor([3.0, 4.0]), None])
    ((term + weight.sum()) * 10).backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [40.0, 50.0]
    assert other.grad is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, r"`steps` must be a finite number at least 1"),
        ({"step_size": -0.1}, r"`step_size` must be a finite number at least 0"),
        ({"max_norm": float("nan")}, r"`max_norm` must be a finite number"),
        ({"norm": "l1"}, r"`norm` must be one of \['l2', 'linf'\]; got 'l1'"),
        ({"weight": 1.0}, r"options of method 'freelb' must be among .*; got 'weight'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        finetune.method("freelb", **options)
