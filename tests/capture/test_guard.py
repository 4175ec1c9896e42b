"""The guard puts back whatever a forward pass can change, also what no model of the zoo changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from dynprobe.capture.guard import attention_implementation, random_state_kept, set_eager_attention, undisturbed
from dynprobe.capture.recorder import Recorder
from dynprobe.probe_set import ProbeSet


class Untidy(nn.Module):
    """Changes everything that a module can change in a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("table", torch.zeros(4))
        self.cache: dict[str, torch.Tensor] = {"kept": torch.ones(1)}
        self.seen: list[int] = [1]
        self.names = {"a"}
        self.count = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        self.seen.append(self.count)
        self.names.add("b")
        self.cache = {**self.cache, "replaced": x}
        self.table.add_(1)
        self.register_buffer("late", x.detach(), persistent=False)
        self.extra = nn.Linear(1, 1)
        self.norm.running_mean.add_(1)
        self.layer.register_forward_hook(lambda *_: None)
        return self.norm(self.layer(x))


def state(model: nn.Module) -> Any:
    """Everything on a module, with containers by content and tensors by identity and value."""
    plain = {
        name: sorted(map(str, value)) if isinstance(value, dict | list | set) else id(value)
        for module in model.modules()
        for name, value in vars(module).items()
    }
    values = {name: value.tolist() for name, value in model.state_dict().items()}
    return plain, values, [module.training for module in model.modules()]


def test_what_a_module_keeps_in_containers_is_put_back() -> None:
    model = Untidy().train()
    model.cache["list"] = torch.ones(2)
    before, cache, registry = state(model), model.cache, model._buffers
    with undisturbed(model) as probed:
        probed(torch.ones(2, 3))
        probed.cache["in place"] = torch.ones(1)
        assert state(model) != before, "the comparison is able to fail"
        assert "late" in model._buffers
    assert state(model) == before
    assert model.cache is cache
    assert list(cache) == ["kept", "list"]
    assert model._buffers is registry
    assert "late" not in model.state_dict()
    assert model._non_persistent_buffers_set == set()


@pytest.mark.parametrize(
    "draw", [lambda: torch.rand(1), lambda: np.random.rand(), lambda: __import__("random").random()]
)
def test_random_states_are_kept(draw: Callable[[], Any]) -> None:
    with random_state_kept():
        first = draw()
    assert draw() == first
    with pytest.raises(ZeroDivisionError), random_state_kept():  # noqa: PT012
        second = draw()
        1 / 0  # noqa: B018
    assert draw() == second


def bert() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    return BertModel(config).train()


def test_the_attention_implementation_is_put_back() -> None:
    model = bert()
    with undisturbed(model):
        set_eager_attention(model)
        assert attention_implementation(model) == "eager"
    assert attention_implementation(model) == "sdpa"
    assert attention_implementation(nn.Linear(1, 1)) is None


def test_global_settings_are_as_before_and_inside_nothing_is_recorded() -> None:
    model = bert()

    def settings() -> tuple[Any, ...]:
        return (
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu"),
        )

    before = settings()
    with torch.autocast("cpu", dtype=torch.bfloat16), undisturbed(model) as probed:
        assert not torch.is_autocast_enabled("cpu")
        assert not any(module.training for module in probed.modules())
        out = probed(input_ids=torch.full((1, 4), 7)).last_hidden_state
    assert out.dtype == torch.float32
    assert not out.requires_grad
    assert not out.is_inference(), "training could not use buffers made in inference mode"
    assert settings() == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_that_fails_in_the_middle_of_the_probe(tmp_path: Path) -> None:
    model, calls = bert(), []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("second batch")

    handle = model.encoder.layer[1].register_forward_hook(fail)
    before, rng = state(model), torch.get_rng_state()
    probe = ProbeSet.from_features([{"input_ids": np.arange(5, 9 + i)} for i in range(6)], batch_size=3)
    with Recorder(model, probe, tmp_path / "run") as recorder, pytest.raises(RuntimeError, match="second batch"):
        recorder.snapshot(0)
    assert state(model) == before
    assert torch.equal(torch.get_rng_state(), rng)
    assert recorder.steps == ()
    assert list((tmp_path / "run" / "snapshots").iterdir()) == [], "no half-written file"
    handle.remove()
    model(input_ids=torch.full((1, 4), 7))
    assert len(calls) == 2


def test_patched_forwards_are_set_aside_and_put_back() -> None:
    """As accelerate patches a model for mixed precision."""
    model = bert()
    original = model.forward
    model._original_forward = original
    model.forward = lambda **_: "patched"  # type: ignore[method-assign]
    patched = model.forward
    with undisturbed(model) as probed:
        assert not isinstance(probed(input_ids=torch.full((1, 4), 7)), str)
    assert model.forward is patched
    assert model(input_ids=torch.full((1, 4), 7)) == "patched"
