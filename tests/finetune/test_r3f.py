"""R3F: its value and gradients by hand, its laws, every kind of task, what the published code does otherwise."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor

from dynprobe import finetune
from dynprobe.finetune.divergences import symmetric_kl
from dynprobe.finetune.embeddings import perturbed, real_tokens, word_embeddings
from dynprobe.finetune.r3f import R3F, noise
from dynprobe.finetune.streams import Stream
from dynprobe.finetune.targets import real_rows

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture
def exact(classifier_of: Callable[..., Any]) -> Any:
    """A classifier in float64 without dropout, whose passes are one function."""
    return classifier_of("bert", **NO_DROPOUT).double().train()


def drawn(method: R3F, inputs: dict[str, Tensor], width: int) -> Tensor:
    """The noise that the first batch gets."""
    mask = real_tokens(inputs)
    generator = Stream("noise", method.seed).generator("cpu")
    return noise((*mask.shape, width), method.eps, method.noise, generator) * mask[..., None]


def both_passes(model: Any, inputs: dict[str, Tensor], delta: Tensor) -> tuple[Any, Tensor]:
    clean = model(**inputs)
    with perturbed(word_embeddings(model), delta):
        return clean, model(**inputs).logits


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_value_by_hand(kind: str, exact: Any, batch: Callable[..., Any]) -> None:
    method = R3F(eps=0.05, noise=kind, weight=0.7).prepare(exact)
    inputs = batch()
    step = method.loss(exact, inputs)
    clean, noisy = both_passes(exact, inputs, drawn(method, inputs, 16))
    expected = symmetric_kl(clean.logits, noisy).mean()
    torch.testing.assert_close(step.terms["divergence"], expected.detach())
    torch.testing.assert_close(step.loss, clean.loss + 0.7 * expected)
    torch.testing.assert_close(step.task + step.regulariser, step.loss.detach())
    assert (step.extra_forwards, step.extra_backwards) == (2, 1)  # one of them measures the share of dropout
    assert step.dropout_share == 0  # there is no dropout


def test_no_noise_is_no_divergence(exact: Any, batch: Callable[..., Any]) -> None:
    assert float(R3F(eps=0.0).prepare(exact).loss(exact, batch()).terms["divergence"]) == 0


def test_divergence_grows_with_the_square_of_the_noise(exact: Any, batch: Callable[..., Any]) -> None:
    small, large = (float(R3F(eps=eps).prepare(exact).loss(exact, batch()).terms["divergence"]) for eps in (1e-5, 1e-4))
    assert large / small == pytest.approx(
        100, rel=100 * 1e-4 * 10
    )  # next term: a few times eps over the weights' size of 0.02


@pytest.mark.parametrize("through", ["both", "clean", "noisy"])
def test_gradient_goes_where_it_should(through: str, exact: Any, batch: Callable[..., Any]) -> None:
    inputs = batch()
    method = R3F(eps=0.05, grad_through=through).prepare(exact)
    step = method.loss(exact, inputs)
    found = torch.autograd.grad(step.loss, list(exact.parameters()))
    clean, noisy = both_passes(exact, inputs, drawn(method, inputs, 16))
    sides = {"both": (clean.logits, noisy), "clean": (clean.logits, noisy.detach())}
    sides["noisy"] = (clean.logits.detach(), noisy)
    expected = torch.autograd.grad(clean.loss + symmetric_kl(*sides[through]).mean(), list(exact.parameters()))
    torch.testing.assert_close(found, expected)
    assert step.extra_backwards == (through != "clean")


def test_gradient_against_differences(exact: Any, batch: Callable[..., Any]) -> None:
    inputs, weight = batch(), exact.classifier.weight
    (found,) = torch.autograd.grad(R3F(eps=0.05, weight=50.0).prepare(exact).loss(exact, inputs).loss, weight)
    step, change = 1e-6, torch.zeros_like(weight)
    change[1, 2] = step
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * change
        values.append(R3F(eps=0.05, weight=50.0).prepare(exact).loss(exact, inputs).loss.detach())
        with torch.no_grad():
            weight -= sign * change
    assert float((values[0] - values[1]) / (2 * step)) == pytest.approx(float(found[1, 2]), rel=1e-6)


def test_noise_of_the_published_size_drowns_in_dropout(
    classifier_of: Callable[..., Any], batch: Callable[..., Any]
) -> None:
    model, inputs = classifier_of("bert").train(), batch()
    values = {}
    for dropout, eps in (("independent", 1e-5), ("independent", 0.0), ("shared", 1e-5)):
        torch.manual_seed(3)
        step = R3F(eps=eps, dropout=dropout).prepare(model).loss(model, inputs)
        values[dropout, eps] = float(step.terms["divergence"])
    assert values["independent", 1e-5] == pytest.approx(values["independent", 0.0], rel=0.01)
    assert values["shared", 1e-5] < 1e-4 * values["independent", 0.0]


def test_share_of_dropout(classifier_of: Callable[..., Any], batch: Callable[..., Any]) -> None:
    model, inputs = classifier_of("bert").train(), batch(24)
    torch.manual_seed(0)
    method = R3F(share_every=3).prepare(model)
    shares = [method.loss(model, inputs).dropout_share for _ in range(21)]
    measured = [share for share in shares if share is not None]
    assert [share is not None for share in shares] == [i % 3 == 0 for i in range(21)]
    assert 0.5 < sorted(measured)[3] < 2  # both divergences come from independent masks of the same rate
    loud = R3F(eps=2.0).prepare(model).loss(model, inputs).dropout_share
    assert loud is not None
    assert loud < 0.2
    assert R3F(dropout="shared", eps=1e-2).prepare(model).loss(model, inputs).dropout_share == 0
    assert R3F(share_every=0).prepare(model).loss(model, inputs).dropout_share is None


def test_regression_is_compared_by_squares(classifier_of: Callable[..., Any], batch: Callable[..., Any]) -> None:
    model = classifier_of("bert", num_labels=1, **NO_DROPOUT).double().train()
    inputs = batch() | {"labels": torch.rand(6, dtype=torch.float64)}
    method = R3F(eps=0.05).prepare(model)
    step = method.loss(model, inputs)
    clean, noisy = both_passes(model, inputs, drawn(method, inputs, 16))
    torch.testing.assert_close(step.terms["divergence"], (clean.logits - noisy).square().mean().detach())
    assert float(step.terms["divergence"]) > 0
    thrown_away = R3F(eps=0.05, as_released=True).prepare(model).loss(model, inputs)
    assert float(thrown_away.terms["divergence"]) == 0


def tokens_of(kind: str) -> tuple[Any, dict[str, Tensor]]:
    torch.manual_seed(0)
    ids = torch.randint(5, 30, (3, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 3 + [0] * 3])
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask.bool(), ids, -100)}
    if kind == "tokens":
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        model: Any = tf.BertForTokenClassification(tf.BertConfig(vocab_size=30, num_labels=30, **sizes, **NO_DROPOUT))
    elif kind == "causal":
        rates = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        model = tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=30, n_embd=8, n_layer=1, n_head=1, **rates))
    else:
        sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 1}
        model = tf.T5ForConditionalGeneration(
            tf.T5Config(vocab_size=30, decoder_start_token_id=0, pad_token_id=0, dropout_rate=0.0, **sizes)
        )
    return model.double().train(), inputs


@pytest.mark.parametrize(("kind", "n_real"), [("tokens", 13), ("causal", 10), ("seq2seq", 13)])
def test_per_target_that_is_not_padding(kind: str, n_real: int) -> None:
    model, inputs = tokens_of(kind)
    method = R3F(eps=0.05).prepare(model)
    step = method.loss(model, inputs)
    clean, noisy = both_passes(model, inputs, drawn(method, inputs, 8))
    values, real = symmetric_kl(clean.logits, noisy), real_rows(model, inputs, clean.logits)
    assert real is not None
    assert int(real.sum()) == n_real
    torch.testing.assert_close(step.terms["divergence"], (values[real].sum() / n_real).detach())
    per_sentence = R3F(eps=0.05, reduction="sentence").prepare(model).loss(model, inputs).terms["divergence"]
    torch.testing.assert_close(per_sentence, (values[real].sum() / 3).detach())
    released = R3F(eps=0.05, as_released=True).prepare(model).loss(model, inputs).terms["divergence"]
    torch.testing.assert_close(released, (values.sum() / 3).detach())  # padding included
    assert float(released) > 3 * float(step.terms["divergence"])


def test_released_roberta_has_no_noise(classifier_of: Callable[..., Any], batch: Callable[..., Any]) -> None:
    rates = {**NO_DROPOUT, "classifier_dropout": 0.0}
    for family, is_dropped in (("roberta", True), ("bert", False)):
        model = classifier_of(family, **rates).train()
        value = R3F(eps=0.1, as_released=True).prepare(model).loss(model, batch()).terms["divergence"]
        assert (float(value) == 0) == is_dropped
        assert float(R3F(eps=0.1).prepare(model).loss(model, batch()).terms["divergence"]) > 0


def test_released_roberta_is_dropout_alone(classifier_of: Callable[..., Any], batch: Callable[..., Any]) -> None:
    model, inputs = classifier_of("roberta").train(), batch()
    torch.manual_seed(0)
    released = R3F(eps=0.1, as_released=True).prepare(model).loss(model, inputs)
    torch.manual_seed(0)
    without = R3F(eps=0.0).prepare(model).loss(model, inputs)
    assert torch.equal(released.terms["divergence"], without.terms["divergence"])


def test_released_classifier_keeps_gradient_from_the_table(exact: Any, batch: Callable[..., Any]) -> None:
    inputs, table = batch(), exact.get_input_embeddings().weight
    right, released = (R3F(eps=0.05, as_released=as_released).prepare(exact) for as_released in (False, True))
    (whole,) = torch.autograd.grad(right.loss(exact, inputs).loss, table)
    (part,) = torch.autograd.grad(released.loss(exact, inputs).loss, table)
    clean, noisy = both_passes(exact, inputs, drawn(right, inputs, 16))
    with perturbed(word_embeddings(exact), drawn(right, inputs, 16), detached=True):
        noisy = exact(**inputs).logits
    (expected,) = torch.autograd.grad(clean.loss + symmetric_kl(clean.logits, noisy).mean(), table)
    torch.testing.assert_close(part, expected)
    assert not torch.allclose(part, whole)


def test_evaluation_is_the_task_alone(classifier_of: Callable[..., Any], batch: Callable[..., Any]) -> None:
    model, inputs = classifier_of("bert").eval(), batch()
    for name in finetune.METHODS:
        method = finetune.method(name)
        step = method.loss(model, inputs)
        assert torch.equal(step.loss, model(**inputs).loss)
        assert (step.extra_forwards, step.extra_backwards, float(step.regulariser)) == (0, 0, 0.0)


def test_a_loss_of_ones_own(exact: Any, batch: Callable[..., Any]) -> None:
    def own(model: Any, inputs: Any) -> tuple[Tensor, Any]:
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        return outputs.logits.square().sum(), outputs

    step = R3F(eps=0.05).prepare(exact).loss(exact, batch(), own, share=0.5)
    torch.testing.assert_close(step.regulariser, 0.5 * step.terms["divergence"])
    with pytest.raises(ValueError, match=r"the model must return a `loss`; got none. Give it `labels`"):
        R3F().loss(exact, {name: value for name, value in batch().items() if name != "labels"})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"eps": -1e-5}, ValueError, r"`eps` must be a finite number at least 0 and at most 10; got -1e-05"),
        ({"eps": float("nan")}, ValueError, r"`eps` must be a finite number.*got nan"),
        ({"eps": 11.0}, ValueError, r"`eps` must be .* at most 10; got 11.0"),
        ({"weight": float("inf")}, ValueError, r"`weight` must be a finite number at least 0; got inf"),
        ({"noise": "cauchy"}, ValueError, r"`noise` must be one of \['uniform', 'normal'\]; got 'cauchy'"),
        ({"eps": "1e-5"}, TypeError, r"`eps` must be float; got '1e-5'"),
        ({"as_released": 1}, TypeError, r"`as_released` must be bool; got 1"),
        ({"seed": -1}, ValueError, r"`seed` must be a whole number from 0 to 2\*\*63 - 1; got -1"),
        ({"as_released": True, "dropout": "shared"}, ValueError, r"`as_released` must go with grad_through='both'"),
        (
            {"epsilon": 1.0},
            ValueError,
            r"options of method 'r3f' must be among .*; got 'epsilon'. Did you mean 'eps'\?",
        ),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        finetune.method("r3f", **options)


def test_state_goes_on_where_it_was(classifier_of: Callable[..., Any], batch: Callable[..., Any]) -> None:
    model, inputs = classifier_of("bert").train(), batch()
    first = R3F(eps=0.1, seed=5, dropout="shared").prepare(model)
    _ = first.loss(model, inputs)
    second = R3F(eps=0.1, dropout="shared").prepare(model)
    second.load_state_dict(first.state_dict())
    values = []
    for method in (first, second):
        torch.manual_seed(0)
        values.append([float(method.loss(model, inputs).terms["divergence"]) for _ in range(3)])
    assert values[0] == values[1]
    assert len(set(values[0])) == 3
    with pytest.raises(ValueError, match=r"must be one of method 'r3f' .*missing \['probing'\], unknown \['teacher'\]"):
        second.load_state_dict(
            {name: value for name, value in first.state_dict().items() if name != "probing"}
            | {"teacher": torch.ones(1)}
        )
