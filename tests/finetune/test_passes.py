"""Extra passes with checkpointing, compilation and adapters: the same gradients, and nothing left behind."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dynprobe import finetune
from dynprobe.finetune.passes import unwrapped

# Of names that transformers and peft still use.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
METHODS = [("r3f", {"eps": 0.1}), ("r4f", {"eps": 0.1}), ("smart", {"eps": 0.1}), ("freelb", {}), ("rdrop", {})]


def gradients(model: Any, trained: Any, inputs: Any, name: str, options: dict[str, Any]) -> list[torch.Tensor]:
    method = finetune.method(name, **options).prepare(model)
    torch.manual_seed(1)
    for _ in range(2):
        model.zero_grad()
        method.loss(trained, inputs).loss.backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), METHODS)
@pytest.mark.parametrize("way", ["checkpointing", "compiled", "compiled in place"])
def test_gradients_are_the_same(
    way: str,
    name: str,
    options: dict[str, Any],
    classifier_of: Callable[..., Any],
    batch: Callable[..., Any],
) -> None:
    plain, other = classifier_of("bert").train(), classifier_of("bert").train()
    expected = gradients(plain, plain, batch(), name, options)
    trained = torch.compile(other, backend="eager") if way == "compiled" else other
    if way == "checkpointing":
        other.gradient_checkpointing_enable({"use_reentrant": False})
    if way == "compiled in place":
        other.compile(backend="eager")
    torch.testing.assert_close(gradients(other, trained, batch(), name, options), expected, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), METHODS)
def test_adapters(
    name: str, options: dict[str, Any], classifier_of: Callable[..., Any], batch: Callable[..., Any]
) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(classifier_of("bert"), peft.LoraConfig(task_type="SEQ_CLS", r=2)).train()
    step = finetune.method(name, **options).prepare(model).loss(model, batch())
    step.loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained
    assert all(parameter.grad is not None and bool(parameter.grad.isfinite().all()) for parameter in trained)


def test_wrappers_that_split_are_refused(classifier_of: Callable[..., Any], batch: Callable[..., Any]) -> None:
    split = torch.nn.DataParallel(classifier_of("bert").train())
    with pytest.raises(ValueError, match=r"must run on whole weights and whole batches; got a model in DataParallel"):
        finetune.R3F().loss(split, batch())
    model = classifier_of("bert")
    assert unwrapped(model) is model
