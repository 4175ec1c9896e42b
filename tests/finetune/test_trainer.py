"""Methods inside transformers' Trainer: composition, logs, accumulation, checkpoints, and what is refused."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from dynprobe import finetune
from dynprobe.errors import DynprobeError, UsageError
from dynprobe.finetune.divergences import reduced
from dynprobe.finetune.insertion import insert_before_classifier
from dynprobe.finetune.isobn import IsoBN
from dynprobe.finetune.method import StepLoss, model_loss
from dynprobe.finetune.state_files import STATE_FILE
from dynprobe.finetune.targets import logits_of, real_rows

Make = Callable[..., Any]
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture
def examples(batch: Make) -> list[dict[str, Tensor]]:
    whole = batch(12)
    return [{name: value[row] for name, value in whole.items()} for row in range(12)]


@pytest.fixture
def trainer_of(tmp_path: Path, examples: list[dict[str, Tensor]], capsys: pytest.CaptureFixture[str]) -> Make:
    """Make a trainer on the CPU; options are those of its arguments, and `kind` its class."""

    def make(model: Any, kind: type[Trainer] = Trainer, **options: Any) -> Trainer:
        own = {name: options.pop(name) for name in ("compute_loss_func", "model_init", "optimizers") if name in options}
        arguments: dict[str, Any] = {
            "output_dir": str(tmp_path),
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "logging_steps": 2,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "seed": 3,
        }
        arguments = TrainingArguments(**(arguments | options))
        return kind(model, arguments, train_dataset=options.pop("data", examples), eval_dataset=examples, **own)

    return make


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    model: Any = trainer.model
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@dataclass(kw_only=True, eq=False)
class Deterministic(finetune.Method):
    """Adds the mean square of the logits: what accumulation does to a method's own term can be computed by hand."""

    name: ClassVar[str] = "deterministic"
    has_passes: ClassVar[bool] = True

    def loss(
        self, model: Any, inputs: Any, task_loss: Any = model_loss, *, share: Any = 1.0, loss_scale: float = 1.0
    ) -> StepLoss:
        task, outputs = task_loss(model, inputs)
        logits = logits_of(outputs)
        added = share * reduced(logits.square().mean(dim=-1), real_rows(model, inputs, logits))
        return StepLoss(task + added, task.detach(), added.detach(), outputs)


def test_logs_say_what_the_loss_consists_of(trainer_of: Make, classifier_of: Make) -> None:
    trainer = trainer_of(classifier_of("bert"))
    finetune.enable(trainer, "r3f", eps=0.1, weight=10.0, share_every=1)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        assert line["task_loss"] + line["regulariser"] == pytest.approx(line["loss"], rel=1e-6)
        assert line["regulariser"] == pytest.approx(10 * line["divergence"], rel=1e-6)
        assert (line["extra_forwards"], line["extra_backwards"]) == (2, 1)
        assert line["dropout_share"] > 0
    assert not any("task_loss" in line for line in trainer.state.log_history if "loss" not in line)


@pytest.mark.slow
@pytest.mark.parametrize("name", finetune.METHODS)
def test_every_method_trains_and_leaves_evaluation_alone(name: str, trainer_of: Make, classifier_of: Make) -> None:
    trainer = trainer_of(classifier_of("bert"))
    plain = trainer.evaluate()["eval_loss"]
    before = weights_of(trainer)
    finetune.enable(trainer, name)
    if name not in ("r4f", "reinit"):  # whose model is another function from the start
        assert trainer.evaluate()["eval_loss"] == plain
    trainer.train()
    after = weights_of(trainer)
    assert any(not torch.equal(after[key], value) for key, value in before.items() if key in after)


def test_standard_training_is_what_it_was(trainer_of: Make, classifier_of: Make) -> None:
    plain = trainer_of(classifier_of("bert"))
    plain.train()
    switched = trainer_of(classifier_of("bert"))
    finetune.enable(switched, "standard")
    switched.train()
    torch.testing.assert_close(weights_of(plain), weights_of(switched), rtol=0, atol=0)


def uneven_language_batches() -> list[dict[str, Tensor]]:
    ids = torch.randint(5, 60, (4, 6), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, 2:] = labels[2, 3:] = -100
    return [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]


@pytest.mark.parametrize(
    "task",
    [
        "generator",
        *(pytest.param(task, marks=pytest.mark.slow) for task in ("classifier", "loss function", "smoothing")),
    ],
)
def test_accumulated_batches_are_one_batch(task: str, trainer_of: Make, classifier_of: Make) -> None:
    """The gradient of a method's own term beside the task's, of two batches of two and of one of four."""
    gradients = []
    for size, n_batches in ((4, 1), (2, 2)):
        torch.manual_seed(0)
        rates = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        generator = tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=64, n_embd=8, n_layer=1, n_head=1, **rates))
        model = generator if task == "generator" else classifier_of("bert", **NO_DROPOUT)
        options: dict[str, Any] = {
            "max_grad_norm": 0.0,
            "optim": "sgd",
            "learning_rate": 1.0,
            "max_steps": 1,
            "logging_steps": 1,
        }
        if task == "loss function":
            options["compute_loss_func"] = summed_loss
        if task == "smoothing":
            options["label_smoothing_factor"] = 0.1
        if task == "generator":
            options["average_tokens_across_devices"] = False
        trainer = trainer_of(model, per_device_train_batch_size=size, gradient_accumulation_steps=n_batches, **options)
        if task == "generator":
            trainer.train_dataset = uneven_language_batches()
        else:
            trainer.train_dataset = trainer.train_dataset[:4]
        finetune.enable(trainer, Deterministic())
        before = weights_of(trainer)
        trainer.train()
        gradients.append({name: before[name] - value for name, value in weights_of(trainer).items()})
        line = trainer.state.log_history[0]
        assert line["task_loss"] + line["regulariser"] == pytest.approx(line["loss"], rel=1e-5)
    factor = 2 if task == "classifier" else 1  # this model ignores the number of targets; its losses are added up
    for name, whole in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], factor * whole, rtol=1e-4, atol=1e-6)


def summed_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


class OwnLoss(Trainer):
    """A subclass as users write them."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = nn.functional.cross_entropy(outputs.logits, labels, weight=torch.tensor([1.0, 2.0, 3.0]))
        return (loss, outputs) if return_outputs else loss


class OnlyLoss(OwnLoss):
    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        return super().compute_loss(model, inputs)


class OwnStep(Trainer):
    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        model.train()
        loss = model(**self._prepare_inputs(inputs)).loss
        self.accelerator.backward(loss)
        return loss.detach()


@pytest.mark.parametrize(
    "name", ["freelb", *(pytest.param(name, marks=pytest.mark.slow) for name in ("r3f", "rdrop", "smart"))]
)
def test_a_subclass_with_its_own_loss(name: str, trainer_of: Make, classifier_of: Make) -> None:
    trainer = trainer_of(classifier_of("bert"), OwnLoss, gradient_accumulation_steps=2)
    trainer.loss_is_scaled_for_ga = False
    finetune.enable(trainer, name)
    trainer.train()
    line = trainer.state.log_history[0]
    assert line["task_loss"] + line["regulariser"] == pytest.approx(line["loss"], rel=1e-6)
    assert 0.9 < line["task_loss"] < 1.3  # a mean over the accumulated batches, near ln 3


@pytest.mark.slow
def test_a_subclass_that_cannot_take_part(trainer_of: Make, classifier_of: Make) -> None:
    trainer = trainer_of(classifier_of("bert"), OnlyLoss)
    finetune.enable(trainer, "r3f")
    with pytest.raises(UsageError, match=r"`compute_loss` must return the outputs too .*; got Tensor from OnlyLoss"):
        trainer.train()
    trainer = trainer_of(classifier_of("bert"), OwnStep)
    finetune.enable(trainer, "r3f")
    with pytest.raises(UsageError, match=r"`training_step` must call `compute_loss`.*OwnStep did not"):
        trainer.train()


@pytest.mark.slow
def test_bfloat16_autocast(trainer_of: Make, classifier_of: Make) -> None:
    for name in ("r3f", "smart", "freelb"):
        trainer = trainer_of(classifier_of("bert"), bf16=True)
        finetune.enable(trainer, name)
        trainer.train()
        assert trainer.state.log_history[0]["loss"] > 0


OPTIONS: dict[str, dict[str, Any]] = {
    "r3f": {"eps": 0.1, "share_every": 2},
    "r4f": {"power_iterations": 1},
    "smart": {"eps": 0.01},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name != "smart" else []) for name in finetune.METHODS]
)
def test_resumed_training_is_the_same_training(
    name: str, tmp_path: Path, trainer_of: Make, classifier_of: Make
) -> None:
    """Six steps against three and three more, bit by bit, from another process's point of view."""

    def run(folder: str, resume: str | None = None) -> Trainer:
        options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "gradient_accumulation_steps": 2}
        torch.manual_seed(0 if resume is None else 1)
        trainer = trainer_of(
            classifier_of("bert", seed=resume is not None), output_dir=str(tmp_path / folder), **options
        )
        finetune.enable(trainer, name, streams=finetune.Streams(3), **OPTIONS.get(name, {}))
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run("a")
    resumed = run("a", str(tmp_path / "a" / "checkpoint-3"))
    torch.testing.assert_close(weights_of(resumed), weights_of(whole), rtol=0, atol=0)
    last = [trainer.state.log_history[-2] for trainer in (whole, resumed)]
    assert last[0]["step"] == last[1]["step"] == 6
    assert {key: last[0][key] for key in last[0] if key != "epoch"} == {
        key: last[1][key] for key in last[1] if key != "epoch"
    }


def test_state_is_plain_tensors(tmp_path: Path, trainer_of: Make, classifier_of: Make) -> None:
    trainer = trainer_of(classifier_of("bert"), save_strategy="steps", save_steps=4)
    finetune.enable(trainer, "smart")
    trainer.train()
    tensors = load_file(tmp_path / "checkpoint-4" / STATE_FILE)
    assert int(tensors["smart/n_steps"]) == 4
    assert tensors["smart/noise"].tolist() == [0, 4]
    assert tensors["smart/teacher.classifier.weight"].shape == (3, 16)
    assert not list((tmp_path / "checkpoint-4").glob("*.tmp"))


@pytest.mark.slow
def test_resuming_without_its_state(tmp_path: Path, trainer_of: Make, classifier_of: Make) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    trainer = trainer_of(classifier_of("bert"), **saving)
    finetune.enable(trainer, "r3f")
    trainer.train()
    folder = tmp_path / "checkpoint-2"

    other = trainer_of(classifier_of("bert"), **saving)
    finetune.enable(other, "r3f", eps=0.5)
    with pytest.raises(UsageError, match=r"must be resumed with the methods, options and streams that it began with"):
        other.train(resume_from_checkpoint=str(folder))
    file = folder / STATE_FILE
    file.write_bytes(b"garbage")
    same = trainer_of(classifier_of("bert"), **saving)
    finetune.enable(same, "r3f")
    with pytest.raises(DynprobeError, match=r"must be a safetensors file; it cannot be read"):
        same.train(resume_from_checkpoint=str(folder))
    file.unlink()
    with pytest.raises(DynprobeError, match=rf"a checkpoint must hold {STATE_FILE} to resume a training with 'r3f'"):
        same.train(resume_from_checkpoint=str(folder))
    plain = trainer_of(classifier_of("bert"), **saving)
    finetune.enable(plain, "standard")  # has no state
    plain.train(resume_from_checkpoint=str(folder))


@pytest.mark.slow
def test_resumes_from_the_last_checkpoint(trainer_of: Make, classifier_of: Make) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    first = trainer_of(classifier_of("bert"), **saving, max_steps=2)
    finetune.enable(first, "rdrop")
    first.train()
    again = trainer_of(classifier_of("bert"), **saving)
    callback = finetune.enable(again, "rdrop")
    again.train(resume_from_checkpoint=True)
    assert callback.methods[0].state_dict()["masks"].tolist() == [0, 4]


@pytest.mark.slow
def test_best_model_of_r4f_is_reloaded(trainer_of: Make, classifier_of: Make) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    trainer = trainer_of(classifier_of("roberta"), **saving, load_best_model_at_end=True)
    finetune.enable(trainer, "r4f")
    trainer.train()
    best = min(line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best, rel=1e-6)


@pytest.mark.slow
def test_models_that_are_made_anew(trainer_of: Make, classifier_of: Make) -> None:
    trainer = trainer_of(None, model_init=lambda: classifier_of("bert"))
    callback = finetune.enable(trainer, "r4f", seed=4)
    for _ in range(2):
        trainer.train()
        assert callback.methods[0].state_dict()["noise"].tolist() == [4, 4]
        model: Any = trainer.model
        assert float(torch.linalg.svdvals(model.classifier.weight.detach())[0]) == pytest.approx(1, abs=1e-6)


@pytest.mark.slow
def test_isobn_sees_each_batch_once(trainer_of: Make, classifier_of: Make) -> None:
    for name in ("standard", "r3f", "freelb"):
        model = classifier_of("bert")
        norm = IsoBN(16)
        insert_before_classifier(model, norm)
        trainer = trainer_of(model)
        finetune.enable(trainer, name)
        trainer.train()
        assert int(norm.n_updates) == 4
        assert norm.training


@pytest.mark.parametrize("name", ["r3f", "smart", "freelb"])
def test_masks_of_mixout_are_not_shifted(name: str, classifier_of: Make, batch: Make) -> None:
    """Extra passes draw Mixout's masks elsewhere, or the same again; the clean pass is that of Mixout alone."""
    seen = []
    for other in ("standard", name):
        model = classifier_of("bert").train()
        finetune.method("mixout", p=0.5).prepare(model)
        quiet = {"init_magnitude": 0.0, "step_size": 0.0} if other == "freelb" else {}
        method = finetune.method(other, **quiet).prepare(model)
        torch.manual_seed(0)
        seen.append([method.loss(model, batch()) for _ in range(3)])
    for alone, both in zip(*seen, strict=True):
        assert torch.equal(alone.task, both.task)
        if name == "smart":
            assert float(both.terms["proximal"]) == 0  # the same masks in both passes
        if name == "freelb":
            assert float(both.regulariser) == pytest.approx(0, abs=1e-6)


def test_combinations(trainer_of: Make, classifier_of: Make) -> None:
    trainer = trainer_of(classifier_of("bert"))
    callback = finetune.enable(trainer, "r3f")
    with pytest.raises(ValueError, match="must be used one at a time; got 'r3f' and 'smart'"):
        finetune.enable(trainer, "smart")
    with pytest.raises(ValueError, match="a method must be used once; got 'r3f' twice"):
        finetune.enable(trainer, "r3f")
    with pytest.raises(ValueError, match="`streams` must be given with the first method"):
        finetune.enable(trainer, "standard", streams=finetune.Streams())
    assert finetune.enable(trainer, "standard") is callback
    assert [method.name for method in callback.methods] == ["r3f", "standard"]


def test_what_is_refused_before_training(trainer_of: Make, classifier_of: Make) -> None:
    trainer = trainer_of(classifier_of("bert"))
    untouched = copy.copy(vars(trainer))
    refused: list[tuple[Any, dict[str, Any], str]] = [
        ("r5f", {}, r"`method` must be one of \['standard', 'r3f', .*got 'r5f'. Did you mean 'r3f'\?|'r4f'\?"),
        ("r3f", {"scale": 1.0}, r"options of method 'r3f' must be among"),
        ("r3f", {"eps": -1.0}, r"`eps` must be"),
        (
            finetune.R3F(),
            {"eps": 1.0},
            r"options must be given where the method is made; got \['eps'\] beside a method",
        ),
    ]
    for name, options, message in refused:
        with pytest.raises(ValueError, match=message):
            finetune.enable(trainer, name, **options)
    assert vars(trainer) == untouched
    with pytest.raises(ValueError, match="at least two labels"):  # complained about by the model
        finetune.enable(one := trainer_of(classifier_of("bert", num_labels=1)), "r3f", divergence="kl")
    assert "compute_loss" not in vars(one)
    noisy = trainer_of(classifier_of("bert"), neftune_noise_alpha=5.0)
    with pytest.raises(ValueError, match=r"`neftune_noise_alpha` must be None with method 'r3f'.*got 5.0"):
        finetune.enable(noisy, "r3f")
    trainer.is_in_train = True
    with pytest.raises(ValueError, match=r"must be switched on before `trainer.train\(\)`"):
        finetune.enable(trainer, "r3f")
    order = trainer_of(classifier_of("bert"), accelerator_config={"use_seedable_sampler": False})
    with pytest.raises(ValueError, match="`use_seedable_sampler` must be True"):
        finetune.enable(order, "r3f", streams=finetune.Streams())


@pytest.mark.parametrize(
    ("options", "name", "message"),
    [
        ({"use_liger_kernel": True}, "r3f", "`use_liger_kernel` must be False with method 'r3f'"),
        ({"_n_gpu": 2}, "rdrop", "must run on whole weights and whole batches; got DataParallel on 2 GPUs"),
        (
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
            "freelb",
            "gradient checkpointing must have use_reentrant=False with method 'freelb'",
        ),
    ],
)
def test_arguments_that_collide(
    options: dict[str, Any], name: str, message: str, trainer_of: Make, classifier_of: Make
) -> None:
    trainer = trainer_of(classifier_of("bert"))
    vars(trainer.args).update(options)
    with pytest.raises(ValueError, match=message):
        finetune.enable(trainer, name)


@pytest.mark.slow
def test_optimizers_that_exist_already(trainer_of: Make, classifier_of: Make) -> None:
    model = classifier_of("bert")
    trainer = trainer_of(model, optimizers=(torch.optim.SGD(model.parameters(), lr=0.1), None))
    finetune.enable(trainer, "r4f")
    before = weights_of(trainer)["classifier.parametrizations.weight.original"]
    trainer.train()
    assert not torch.equal(weights_of(trainer)["classifier.parametrizations.weight.original"], before)
    part = trainer_of(
        model := classifier_of("bert"), optimizers=(torch.optim.SGD([model.classifier.bias], lr=0.1), None)
    )
    with pytest.raises(ValueError, match=r"the optimizer must hold every parameter that is trained; got one without"):
        finetune.enable(part, "r3f")


def test_options_from_text() -> None:
    assert finetune.parse_options("smart", {"late_after": "none", "steps": "2", "as_released": "true"}) == {
        "late_after": None,
        "steps": 2,
        "as_released": True,
    }
    with pytest.raises(ValueError, match=r"`steps` must be int; got 'two'"):
        finetune.parse_options("smart", {"steps": "two"})
    with pytest.raises(ValueError, match=r"got 'step'. Did you mean 'steps'\?"):
        finetune.parse_options("freelb", {"step": "2"})


def test_every_option_says_what_it_is() -> None:
    for name, kind in finetune.METHODS.items():
        assert kind.name == name
        assert kind.summary
        for entry in kind.options().values():
            assert entry.help
            assert entry.kind in (int, float, bool, str)
        assert kind().settings() == {key: entry.default for key, entry in kind.options().items()}
