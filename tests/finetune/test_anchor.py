"""Pull towards the start: the law of the decay, what is pulled where, and that it resumes."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from dynprobe.finetune.anchor import pull_to_start
from dynprobe.finetune.bert_adam import BertAdam

OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "sgd": lambda params, lr: torch.optim.SGD(params, lr=lr),
    "momentum": lambda params, lr: torch.optim.SGD(params, lr=lr, momentum=0.9),
    "adamw": lambda params, lr: torch.optim.AdamW(params, lr=lr, weight_decay=0.0),
    "bertadam": lambda params, lr: BertAdam(params, lr=lr),
}


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moved(model: Any) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter)


def zero_grads(model: Any) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)


class TestLaw:
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_distance_decays_by_the_product_of_one_minus_rate_times_strength(
        self, name: str, classifier_of: Callable[..., Any]
    ) -> None:
        model = classifier_of("bert").double()
        start, strength, rates = weights(model), 0.3, (0.5, 0.4, 0.2)
        optimizer = OPTIMIZERS[name](model.parameters(), rates[0])
        pull = pull_to_start(optimizer, model, strength)
        moved(model)
        far = weights(model)
        for rate in rates:
            for group in optimizer.param_groups:
                group["lr"] = rate
            zero_grads(model)
            optimizer.step()
        factor = float(torch.prod(1 - strength * torch.tensor(rates, dtype=torch.float64)))
        assert factor < 0.75
        for key, now in weights(model).items():
            if key == "classifier.weight":
                wanted = far[key] * factor  # new: it has no start worth keeping
            elif "bias" in key or "LayerNorm" in key:
                wanted = far[key]
            else:
                wanted = start[key] + (far[key] - start[key]) * factor
            assert torch.allclose(now, wanted, rtol=1e-12, atol=1e-14), key
        assert pull.n_decayed == 1
        assert pull.n_pulled == sum("weight" in key and "LayerNorm" not in key for key in start) - 1
        pull.remove()
        zero_grads(model)
        before = weights(model)
        optimizer.step()
        assert all(torch.equal(before[key], now) for key, now in weights(model).items())

    def test_no_strength_and_no_movement(self, classifier_of: Callable[..., Any]) -> None:
        for strength, far in ((0.0, True), (0.5, False)):
            model = classifier_of("bert")
            optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
            pull_to_start(optimizer, model, strength, new=())
            if far:
                moved(model)
            before = weights(model)
            optimizer.step()
            assert all(torch.equal(before[key], now) for key, now in weights(model).items())

    def test_it_comes_before_the_step_of_the_optimizer(self, classifier_of: Callable[..., Any]) -> None:
        model = classifier_of("bert").double()
        weight = model.bert.pooler.dense.weight
        start = weight.detach().clone()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        pull_to_start(optimizer, model, 0.5)
        theta = start.clone()
        for step in range(1, 4):
            weight.grad = torch.full_like(weight, step)
            optimizer.step()
            theta = theta - 0.1 * 0.5 * (theta - start) - 0.1 * step
        assert torch.allclose(weight.detach(), theta, rtol=1e-12)

    @pytest.mark.parametrize("family", ["roberta", "distilbert", "deberta-v2", "gpt2", "llama", "t5", "bart"])
    def test_every_family_pulls_its_body_only(self, family: str, classifier_of: Callable[..., Any]) -> None:
        model = classifier_of(family)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        pull = pull_to_start(optimizer, model, 0.5)
        start = weights(model)
        moved(model)
        far = weights(model)
        optimizer.step()
        now = weights(model)
        body = f"{model.base_model_prefix}."
        head = [key for key in start if not key.startswith(body) and now[key].dim() > 1]
        assert len(head) == pull.n_decayed > 0
        assert all(torch.allclose(now[key], far[key] * 0.75) for key in head)
        pulled = [key for key in start if key.startswith(body) and not torch.equal(now[key], far[key])]
        assert len(pulled) == pull.n_pulled
        assert all(torch.allclose(now[key], start[key] + 0.75 * (far[key] - start[key]), atol=1e-6) for key in pulled)


class TestAsReleased:
    """Measured for METHODS.md: what the published classes do with the two switches."""

    def after(self, model: Any, **options: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
        start = weights(model)
        pull_to_start(optimizer, model, 1.0, **options)
        moved(model)
        far = weights(model)
        zero_grads(model)
        optimizer.step()
        return start, far, weights(model)

    def test_weight_decay_does_nothing(self, classifier_of: Callable[..., Any]) -> None:
        _, far, now = self.after(classifier_of("bert"), towards="zero", as_released=True)
        assert all(torch.equal(far[key], now[key]) for key in now), "whatever its strength"
        _, far, right = self.after(classifier_of("bert"), towards="zero")
        key = "bert.pooler.dense.weight"
        assert torch.allclose(right[key], 0.9 * far[key])
        assert torch.allclose(right["classifier.weight"], 0.9 * far["classifier.weight"])
        assert torch.equal(right["classifier.bias"], far["classifier.bias"])

    def test_the_new_head_is_pulled_to_its_random_start(self, classifier_of: Callable[..., Any]) -> None:
        key = "classifier.weight"
        start, far, now = self.after(classifier_of("bert"), as_released=True)
        assert torch.allclose(now[key], 0.9 * far[key] + 0.1 * start[key], atol=1e-6)
        _, far, now = self.after(classifier_of("bert"))
        assert torch.allclose(now[key], 0.9 * far[key])


class TestResume:
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_state_dict_round_trip(
        self, name: str, classifier_of: Callable[..., Any], batch: Callable[..., Any]
    ) -> None:
        def trained(n_steps: int, saved: Any = None) -> Any:
            model = classifier_of("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
            if saved is not None:  # as a Trainer does it: first the weights, then the optimizer and its state
                model.load_state_dict(saved[0])
            optimizer = OPTIMIZERS[name](model.parameters(), 0.05)
            pull_to_start(optimizer, model, 2.0)
            if saved is not None:
                optimizer.load_state_dict(saved[1])
            for _ in range(n_steps):
                optimizer.zero_grad()
                model(**batch()).loss.backward()
                optimizer.step()
            return copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())

        half = trained(3)
        whole, again = trained(6)[0], trained(3, half)[0]
        assert all(torch.equal(whole[key], again[key]) for key in whole)

    @pytest.mark.slow
    def test_a_trainer_trains_and_resumes_it(
        self, classifier_of: Callable[..., Any], batch: Callable[..., Any], tmp_path: Path
    ) -> None:
        rows = [{name: value[row] for name, value in batch(n=24).items()} for row in range(24)]

        def trained(strength: float, resume: str | None = None) -> tuple[Any, Any]:
            model = classifier_of("bert")
            start = weights(model)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
            pull_to_start(optimizer, model, strength)
            arguments = tf.TrainingArguments(
                output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=8, save_steps=2, seed=1, report_to=[],
                use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, learning_rate=1e-2,
            )  # fmt: skip
            tf.Trainer(model, arguments, train_dataset=rows, optimizers=(optimizer, None)).train(resume)
            now = weights(model)
            return now, sum(float((now[k] - start[k]).square().sum()) for k in now if k.endswith("dense.weight"))

        (free, far), (pulled, near) = trained(0.0), trained(30.0)
        assert near < 0.9 * far
        assert not torch.equal(free["classifier.weight"], pulled["classifier.weight"])
        again, _ = trained(30.0, str(tmp_path / "checkpoint-2"))
        assert all(torch.equal(pulled[key], again[key]) for key in pulled)

    def test_a_parameter_without_gradient_at_first(self, classifier_of: Callable[..., Any]) -> None:
        model = classifier_of("bert")
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
        pull_to_start(optimizer, model, 1.0)
        weight = model.bert.pooler.dense.weight
        start = weight.detach().clone()
        optimizer.step()
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        assert torch.equal(optimizer.state[weight]["anchor"], start)
        assert set(optimizer.state[weight]) == {"step", "exp_avg", "exp_avg_sq", "anchor"}

    def test_another_type_or_place_later(self, classifier_of: Callable[..., Any]) -> None:
        model = classifier_of("bert")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        pull_to_start(optimizer, model, 0.5)
        model.to(torch.bfloat16)
        zero_grads(model)
        optimizer.step()
        assert model.bert.pooler.dense.weight.dtype == torch.bfloat16


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"strength": -1.0}, "`strength` must be a finite number of at least 0; got -1.0"),
            ({"strength": float("nan")}, "`strength` must be a finite number"),
            ({"strength": 1.0, "towards": "mean"}, "`towards` must be 'start' or 'zero'; got 'mean'"),
            ({"strength": 1.0, "new": ("head",)}, "`new` must name modules of the model"),
        ],
    )
    def test_options(self, options: dict[str, Any], message: str, classifier_of: Callable[..., Any]) -> None:
        model = classifier_of("bert")
        with pytest.raises(ValueError, match=message):
            pull_to_start(torch.optim.SGD(model.parameters(), lr=0.1), model, **options)

    def test_optimizers(self, classifier_of: Callable[..., Any]) -> None:
        model = classifier_of("bert")
        with pytest.raises(ValueError, match=r"`optimizer` must have weight_decay=0 beside the pull.*got 0.01"):
            pull_to_start(torch.optim.AdamW(model.parameters(), lr=0.1), model, 1.0)
        with pytest.raises(ValueError, match=r"`optimizer` must hold every trainable weight.*such as 'bert"):
            pull_to_start(torch.optim.SGD(model.classifier.parameters(), lr=0.1), model, 1.0)
