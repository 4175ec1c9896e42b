"""Random streams: independent, repeatable, and a method that shifts none of the others."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from dynprobe import finetune
from dynprobe.finetune.streams import RandomState, Stream, Streams, random_state_kept, replayed


def test_draws_repeat_and_differ() -> None:
    first, same, other, named = Stream("a", 1), Stream("a", 1), Stream("a", 2), Stream("b", 1)
    draws = [torch.rand(4, generator=stream.generator("cpu")) for stream in (first, same, other, named)]
    assert torch.equal(draws[0], draws[1])
    assert not any(torch.equal(draws[0], each) for each in draws[2:])
    assert not torch.equal(torch.rand(4, generator=first.generator("cpu")), draws[0])


def test_state_goes_on() -> None:
    stream, again = Stream("a", 2**62 + 3), Stream("a", 0)
    _ = stream.generator("cpu")
    again.load_state_dict(stream.state_dict())
    assert torch.equal(*(torch.rand(3, generator=each.generator("cpu")) for each in (stream, again)))
    streams, others = Streams(4, data=5), Streams()
    _ = streams.noise.generator("cpu")
    others.load_state_dict(streams.state_dict())
    assert [(each.seed, each.n_used) for each in (others.head, others.data, others.dropout, others.noise)] == [
        (4, 0),
        (5, 0),
        (4, 0),
        (4, 1),
    ]


def test_seeds_stand_alone() -> None:
    streams = Streams(7, head=1, data=2, dropout=3, noise=4)
    assert [each.seed for each in (streams.head, streams.data, streams.dropout, streams.noise)] == [1, 2, 3, 4]
    heads = []
    for other in (0, 1):
        torch.manual_seed(other)  # whatever the process has drawn before
        with Streams(other, head=9).head.in_charge("cpu"):
            heads.append(torch.nn.Linear(3, 3).weight)
    assert torch.equal(*heads)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True])
def test_bad_seeds(seed: Any) -> None:
    with pytest.raises(ValueError, match=r"`seed` must be a whole number from 0 to 2\*\*63 - 1; got"):
        Stream("a", seed)


def test_process_is_left_alone_also_by_errors() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate(), torch.initial_seed()
    with pytest.raises(KeyError), Stream("a", 1).in_charge("cpu"):
        _ = torch.rand(3), random.random(), {}["missing"]
    with random_state_kept("cpu"):
        torch.manual_seed(9)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert torch.initial_seed() == before[2]  # samplers take their order from it


def test_masks_once_more() -> None:
    start = RandomState.now("cpu")
    first = torch.rand(3), random.random()
    with replayed(start, "cpu"):
        again = torch.rand(3), random.random()
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1]


class Watching(Trainer):
    """Notes which examples come in which order, and the loss of each, bit by bit."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        if not hasattr(self, "order"):
            self.order: list[Tensor] = []
            self.losses: list[Tensor] = []
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if len(self.losses) == len(self.order):
            self.order.append(inputs["input_ids"].clone())
            self.losses.append(outputs.logits.detach().clone())
        return (loss, outputs) if return_outputs else loss


def trained(
    folder: Path, model: Any, examples: list[dict[str, Tensor]], method: finetune.Method | None, **options: Any
) -> Watching:
    arguments: dict[str, Any] = {
        "max_steps": 5,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.0,  # so that what differs can only come from random draws
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "seed": 11,
    }
    trainer = Watching(model, TrainingArguments(str(folder), **arguments), train_dataset=examples)  # type: ignore[arg-type]
    if method is not None:
        finetune.enable(trainer, method, **options)
    trainer.train()
    return trainer


@pytest.fixture
def examples(batch: Callable[..., Any]) -> list[dict[str, Tensor]]:
    whole = batch(8)
    return [{name: value[row] for name, value in whole.items()} for row in range(8)]


# The first pass of FreeLB has noise, which here is of size 0.
METHODS = [
    [finetune.R3F(share_every=2)],
    [finetune.R3F(dropout="shared"), finetune.SMART(steps=2), finetune.RDrop()],
    [finetune.FreeLB(init_magnitude=0.0, step_size=0.0)],
]


@pytest.mark.parametrize("methods", [METHODS[0], *(pytest.param(each, marks=pytest.mark.slow) for each in METHODS[1:])])
def test_a_method_shifts_nothing(
    methods: list[finetune.Method],
    tmp_path: Path,
    classifier_of: Callable[..., Any],
    examples: list[dict[str, Tensor]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    standard = trained(tmp_path, classifier_of("bert"), examples, None)
    assert len({tuple(each.flatten().tolist()) for each in standard.order}) > 4
    for method in methods:
        other = trained(tmp_path, classifier_of("bert"), examples, method)
        n_passes = len(other.order) // 5  # R-Drop and FreeLB compute the loss of the task in every pass
        assert torch.equal(torch.stack(standard.order), torch.stack(other.order[::n_passes])), method.name
        assert torch.equal(torch.stack(standard.losses), torch.stack(other.losses[::n_passes])), method.name
        for ours, theirs in zip(standard.model.state_dict().values(), other.model.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs)
    capsys.readouterr()


@pytest.mark.slow
def test_each_stream_of_a_training_has_its_seed(
    tmp_path: Path,
    classifier_of: Callable[..., Any],
    examples: list[dict[str, Tensor]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(method: str, **seeds: int) -> Watching:
        made = finetune.method(method)
        return trained(tmp_path, classifier_of("bert"), examples, made, streams=Streams(0, **seeds))

    base = run("standard")
    for other in (run("standard"), run("r3f"), run("r3f", noise=5), run("standard", head=3)):
        assert torch.equal(torch.stack(base.order), torch.stack(other.order))
        assert torch.equal(torch.stack(base.losses), torch.stack(other.losses))
    masks = run("standard", dropout=1)
    assert torch.equal(torch.stack(base.order), torch.stack(masks.order))
    assert not torch.equal(torch.stack(base.losses), torch.stack(masks.losses))
    assert not torch.equal(torch.stack(base.order), torch.stack(run("standard", data=1).order))
    capsys.readouterr()
