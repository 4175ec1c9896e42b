"""Divergences between passes: golden values, laws, precision, gradients; which predictions count."""

import math
from typing import Any

import pytest
import torch
import transformers as tf
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from dynprobe.finetune.divergences import (
    detached_symmetric_kl,
    mt_dnn_stable_kl,
    reduced,
    squared_difference,
    symmetric_kl,
    symmetric_kl_of_labels,
)
from dynprobe.finetune.targets import divergence_between, logits_of, real_rows, require_divergence
from dynprobe.metrics.divergence import symmetric_kl_divergence

LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=3, max_size=3)
EPS = torch.finfo(torch.float32).eps


def test_golden_value() -> None:
    value = symmetric_kl(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    assert float(value) == pytest.approx(0.9242343, abs=5e-8)
    assert float(value) == pytest.approx(2 * math.tanh(0.5), rel=4 * EPS)  # 2 (p - q) for log odds of ±1


@given(LOGITS, LOGITS, st.floats(-50, 50))
def test_laws(a: list[float], b: list[float], shift: float) -> None:
    p, q = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    value = float(symmetric_kl(p, q))
    assert value >= 0
    assert float(symmetric_kl(q, p)) == pytest.approx(value, rel=1e-12, abs=1e-15)
    assert float(symmetric_kl(p + shift, q)) == pytest.approx(value, rel=1e-9, abs=1e-12)
    assert float(symmetric_kl(p, p + shift)) == pytest.approx(0, abs=1e-24)
    assert float(detached_symmetric_kl(p, q)) == pytest.approx(value, rel=1e-9, abs=1e-13)
    assert value == pytest.approx(float(symmetric_kl_divergence(p, q)), rel=1e-9, abs=1e-13)


def test_is_the_sum_of_both_directions() -> None:
    p, q = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one = functional.kl_div(p.log_softmax(-1), q.softmax(-1), reduction="none").sum(-1)
    other = functional.kl_div(q.log_softmax(-1), p.softmax(-1), reduction="none").sum(-1)
    torch.testing.assert_close(symmetric_kl(p, q), one + other)


def test_close_distributions_keep_their_digits() -> None:
    # The sum of two one-sided divergences in float32 is rounding noise here; each term of this one is a product of differences.
    p = torch.tensor([0.3, -0.2, 0.5])
    q = p + torch.tensor([1e-3, 0.0, -1e-3])
    exact = float(symmetric_kl(p.double(), q.double()))
    assert float(symmetric_kl(p, q)) == pytest.approx(exact, rel=4 * EPS / 1e-3)  # each factor errs by an ulp or two
    naive = functional.kl_div(p.log_softmax(-1), q.softmax(-1), reduction="sum")
    naive = naive + functional.kl_div(q.log_softmax(-1), p.softmax(-1), reduction="sum")
    assert abs(float(naive) / exact - 1) > 4 * EPS / 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_in_float32(dtype: torch.dtype) -> None:
    p, q = torch.tensor([[1.0, 0.0]], dtype=dtype), torch.tensor([[0.0, 1.0]], dtype=dtype)
    for measure in (symmetric_kl, squared_difference, symmetric_kl_of_labels, detached_symmetric_kl):
        value = measure(p, q)
        assert value.dtype == torch.float32
        assert torch.equal(value, measure(p.float(), q.float()))


def test_gradients_against_differences() -> None:
    p, q = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    for measure in (symmetric_kl, squared_difference, symmetric_kl_of_labels):
        assert torch.autograd.gradcheck(measure, (p, q))


def test_gradient_in_closed_form() -> None:
    p, q = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    symmetric_kl(p, q).backward()  # p is a view; its gradient is asked for below
    (gradient,) = torch.autograd.grad(symmetric_kl(p, q), p)
    ratio = p.log_softmax(-1) - q.log_softmax(-1)
    one_sided = (p.softmax(-1) * ratio).sum()
    torch.testing.assert_close(gradient, p.softmax(-1) * (ratio - one_sided) + p.softmax(-1) - q.softmax(-1))


def test_fixed_targets_give_another_gradient() -> None:
    p = torch.tensor([1.0, 0.0, 0.3], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.0, 1.0, -0.4], dtype=torch.float64)
    (whole,) = torch.autograd.grad(symmetric_kl(p, q), p)
    (half,) = torch.autograd.grad(detached_symmetric_kl(p, q), p)
    torch.testing.assert_close(half, p.softmax(-1) - q.softmax(-1))  # of KL(q‖p) alone
    assert not torch.allclose(half, whole)


def test_impossible_classes_count_as_nothing() -> None:
    p = torch.tensor([1.0, 0.0, -math.inf], requires_grad=True)
    value = symmetric_kl(p, torch.tensor([0.0, 1.0, -math.inf]))
    value.backward()
    assert float(value.detach()) == pytest.approx(0.9242343, abs=1e-6)
    assert p.grad is not None
    assert bool(p.grad.isfinite().all())


def test_what_mt_dnn_calls_stable_kl_is_none() -> None:
    p, q = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    kl = float((p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum())
    odds = float((p.softmax(-1) * (p.softmax(-1).logit() - q.softmax(-1).logit()) * 2).sum())
    assert float(mt_dnn_stable_kl(p, q)) == pytest.approx(
        odds, abs=2e-5
    )  # its guards are 1e-6 of probabilities near 0.3
    assert odds == pytest.approx(4 * kl, rel=1e-12)
    assert (
        float(mt_dnn_stable_kl(torch.tensor([-1.7, 3.8, 0.5]), torch.tensor([-2.1, 8.1, -2.1]))) < -11
    )  # no divergence


@pytest.mark.parametrize("measure", [symmetric_kl, detached_symmetric_kl])
def test_one_class_is_refused(measure: Any) -> None:
    with pytest.raises(ValueError, match=r"at least two classes.*got shape \(4, 1\).*divergence='squared'"):
        measure(torch.zeros(4, 1), torch.ones(4, 1))


def test_labels_of_yes_and_no() -> None:
    p, q = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.5, 0.0]])
    both = [torch.stack([logits, torch.zeros_like(logits)], -1) for logits in (p, q)]
    torch.testing.assert_close(symmetric_kl_of_labels(p, q), symmetric_kl(*both).sum(-1))


def test_reductions_by_hand() -> None:
    values = torch.tensor([[1.0, 2.0, 30.0], [4.0, 50.0, 60.0]])
    real = torch.tensor([[True, True, False], [True, False, False]])
    expected = {"mean": 7 / 3, "sentence": 7 / 2, "fairseq": 147 / 2, "parlai": 147 / 3, "sum": 147.0}
    for name, value in expected.items():
        assert float(reduced(values, real, reduction=name)) == pytest.approx(value)
    assert float(reduced(values, torch.zeros_like(real))) == 0
    with pytest.raises(ValueError, match=r"`reduction` must be one of .*got 'mode'"):
        reduced(values, reduction="mode")


def test_fairseq_is_as_many_times_stronger_as_there_are_tokens() -> None:
    values = torch.rand(4, 9)
    assert float(reduced(values, reduction="fairseq") / reduced(values)) == pytest.approx(9, rel=8 * EPS)


def language_model(kind: str) -> Any:
    if kind == "causal":
        return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1))
    if kind == "seq2seq":
        return tf.T5ForConditionalGeneration(
            tf.T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=1, decoder_start_token_id=0)
        )
    config = tf.BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    return tf.BertForTokenClassification(config)


def test_real_targets() -> None:
    labels = torch.tensor([[-100, 3, 4, 5], [1, 2, -100, -100]])
    logits = torch.zeros(2, 4, 9)
    same = labels != -100
    assert torch.equal(real_rows(language_model("tokens"), {"labels": labels}, logits), same)
    assert torch.equal(real_rows(language_model("seq2seq"), {"labels": labels}, logits), same)
    shifted = torch.tensor([[True, True, True, False], [True, False, False, False]])  # i predicts i + 1
    assert torch.equal(real_rows(language_model("causal"), {"labels": labels}, logits), shifted)
    given = {"labels": labels, "shift_labels": torch.tensor([[3, -100, 5, 1], [2, -100, -100, -100]])}
    assert torch.equal(real_rows(language_model("causal"), given, logits), given["shift_labels"] != -100)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    assert torch.equal(real_rows(language_model("tokens"), {"attention_mask": mask}, logits), mask.bool())
    assert torch.equal(real_rows(language_model("seq2seq"), {"decoder_attention_mask": mask}, logits), mask.bool())
    assert real_rows(language_model("tokens"), {}, logits) is None
    assert real_rows(language_model("tokens"), {"labels": labels}, torch.zeros(2, 9)) is None


def test_masks_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"`attention_mask` must have one entry per prediction, shape \(2, 4\); got"):
        real_rows(language_model("tokens"), {"attention_mask": torch.ones(2, 5)}, torch.zeros(2, 4, 9))


@pytest.mark.parametrize(
    ("options", "asked", "expected"),
    [
        ({"num_labels": 3}, "auto", symmetric_kl),
        ({"num_labels": 1}, "auto", squared_difference),
        ({"num_labels": 3, "problem_type": "regression"}, "auto", squared_difference),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "auto", symmetric_kl_of_labels),
        ({"num_labels": 3}, "squared", squared_difference),
    ],
)
def test_divergence_follows_the_task(options: dict[str, Any], asked: str, expected: Any, classifier_of: Any) -> None:
    model = classifier_of("bert", **options)
    assert divergence_between(model, torch.zeros(2, options["num_labels"]), asked) is expected


@pytest.mark.parametrize(("asked", "options"), [("kl", {}), ("auto", {"problem_type": "single_label_classification"})])
def test_kl_of_one_label_is_refused_before_training(asked: str, options: dict[str, Any], classifier_of: Any) -> None:
    model = classifier_of("bert", num_labels=1)
    vars(model.config).update(options)
    with pytest.raises(ValueError, match=r"at least two labels for a KL divergence, which is 0 .*; got num_labels=1"):
        require_divergence(model, asked)
    require_divergence(classifier_of("bert", num_labels=1), "auto")


def test_outputs_without_logits() -> None:
    with pytest.raises(ValueError, match="must hold `logits`; got none"):
        logits_of((torch.zeros(2, 3),))
