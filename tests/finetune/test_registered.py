"""Methods that change the model or the optimizer, by name and in a Trainer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from dynprobe import finetune
from dynprobe.finetune import BertAdam

pytestmark = pytest.mark.slow

Make = Callable[..., Any]
CHANGED = ("isobn", "batch-norm", "mixout", "reinit", "bert-adam", "layer-rates", "pull")


@pytest.fixture
def trainer_of(tmp_path: Path, batch: Make, capsys: pytest.CaptureFixture[str]) -> Make:
    """Make a trainer on the CPU; options are those of its arguments."""
    whole = batch(12)
    examples = [{name: value[row] for name, value in whole.items()} for row in range(12)]

    def make(model: Any, *, optimizers: Any = (None, None), **options: Any) -> Trainer:
        arguments: dict[str, Any] = {
            "output_dir": str(tmp_path),
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "seed": 3,
        }
        return Trainer(model, TrainingArguments(**(arguments | options)), train_dataset=examples, optimizers=optimizers)

    return make


class Stop(TrainerCallback):
    """Ends a training after three steps, as an interruption would."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After the first checkpoint."""
        control.should_training_stop = True


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize("name", CHANGED)
def test_a_method_by_name_trains_otherwise_than_standard(name: str, classifier_of: Make, trainer_of: Make) -> None:
    ends = []
    for method in ("standard", name):
        trainer = trainer_of(classifier_of("bert"))
        finetune.enable(trainer, method, streams=finetune.Streams(5))
        trainer.train()
        ends.append(weights(trainer)["classifier.weight"])
    assert not torch.equal(*ends)
    assert all(value.isfinite().all() for value in ends)


def test_bert_adam_by_name_is_the_optimizer_itself(classifier_of: Make, trainer_of: Make) -> None:
    by_name = trainer_of(classifier_of("bert"), weight_decay=0.1)
    finetune.enable(by_name, "bert-adam")
    by_name.train()
    model = classifier_of("bert")
    plain = trainer_of(model, weight_decay=0.1)
    decayed = plain.get_decay_parameter_names(model)
    groups = [
        {"params": [p for n, p in model.named_parameters() if n in decayed], "weight_decay": 0.1},
        {"params": [p for n, p in model.named_parameters() if n not in decayed], "weight_decay": 0.0},
    ]
    given = trainer_of(model, optimizers=(BertAdam(groups, lr=1e-3), None))
    given.train()
    assert same(weights(by_name), weights(given))


def test_methods_of_the_optimizer_go_together_in_any_order(classifier_of: Make, trainer_of: Make) -> None:
    ends = []
    for names in (("pull", "bert-adam", "layer-rates"), ("layer-rates", "bert-adam", "pull")):
        trainer = trainer_of(classifier_of("bert"), weight_decay=0.1)
        for name in names:
            finetune.enable(trainer, name)
        trainer.train()
        optimizer = trainer.optimizer.optimizer
        assert isinstance(optimizer, BertAdam)
        assert len({group["lr"] for group in optimizer.param_groups}) == 4, "head, two blocks, embeddings"
        assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0}, "the pull takes its place"
        ends.append(weights(trainer))
    assert same(*ends)


def test_the_same_in_a_loop_of_ones_own(classifier_of: Make, batch: Make) -> None:
    model = classifier_of("bert")
    method = finetune.method("layer-rates", decay=0.5)
    method.prepare(model)
    optimizer = method.optimise(torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-5), model)
    assert type(optimizer) is torch.optim.AdamW
    assert {group["eps"] for group in optimizer.param_groups} == {1e-5}
    assert max(group["lr"] for group in optimizer.param_groups) == 1e-3
    step = method.loss(model.train(), batch(4))
    step.loss.backward()
    optimizer.step()


def test_mixout_draws_from_a_stream_of_its_own(classifier_of: Make, trainer_of: Make) -> None:
    """The dropout masks of a paired training are the same, whatever else draws."""
    seen: dict[str, list[Tensor]] = {}
    for name in ("standard", "mixout"):
        model = classifier_of("bert")
        masks = seen.setdefault(name, [])
        model.dropout.register_forward_hook(
            lambda _m, args, out, masks=masks: masks.append(out == 0) if _m.training else None
        )
        trainer = trainer_of(model)
        finetune.enable(trainer, name, streams=finetune.Streams(5))
        trainer.train()
    assert len(seen["standard"]) == 4
    assert all(torch.equal(a, b) for a, b in zip(seen["standard"], seen["mixout"], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("names", [("isobn", "mixout"), ("batch-norm", "bert-adam"), ("layer-rates", "pull", "reinit")])
def test_a_resumed_training_ends_alike(
    names: tuple[str, ...], classifier_of: Make, trainer_of: Make, tmp_path: Path
) -> None:
    def train(*, resume: bool = False, **options: Any) -> dict[str, Tensor]:
        trainer = trainer_of(classifier_of("bert"), max_steps=6, **options)
        for place, name in enumerate(names):
            finetune.enable(trainer, name, streams=None if place else finetune.Streams(5))
        if "save_steps" in options and not resume:
            trainer.add_callback(Stop())
        trainer.train(resume_from_checkpoint=resume or None)
        return weights(trainer)

    whole = train()
    train(save_strategy="steps", save_steps=3)
    assert (tmp_path / "checkpoint-3").is_dir()
    assert same(train(save_strategy="steps", save_steps=3, resume=True), whole)


def test_bert_adam_takes_the_place_of_an_adam_only(classifier_of: Make) -> None:
    model: nn.Module = classifier_of("bert")
    with pytest.raises(ValueError, match="method 'bert-adam' must replace an Adam; got SGD"):
        finetune.method("bert-adam").optimise(torch.optim.SGD(model.parameters(), lr=0.1), model)


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("mixout", {"p": 1.5}, r"`p` must be a finite number at least 0 and at most 1; got 1\.5"),
        ("mixout", {"mask": "rows"}, r"`mask` must be one of \['columns', 'elements'\]; got 'rows'"),
        ("pull", {"strength": -1.0}, "`strength` must be a finite number at least 0; got -1"),
        ("isobn", {"moment": 1.0}, "Did you mean 'momentum'"),
        ("bert-adam", {"scale": "2"}, "`scale` must be one of"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        finetune.method(name, **options)


def test_each_training_seed_has_new_weights_of_its_own(classifier_of: Make) -> None:
    drawn = {}
    for seed in (0, 1):
        made = finetune.method("reinit")
        made.use_noise_seed(seed)
        model = classifier_of("bert")
        made.prepare(model)
        drawn[seed] = model.bert.pooler.dense.weight.detach().clone()
        assert made.settings()["seed"] == 0, "what was asked for stays as it is"
    assert not torch.equal(drawn[0], drawn[1])
