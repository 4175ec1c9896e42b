"""Mixout: the mixed weight, its gradient, and that the model stays one that saves, loads and trains."""

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from dynprobe.finetune.mixout import MixoutConv1D, MixoutLinear, apply_mixout, remove_mixout
from dynprobe.finetune.saved import restore_saved_state
from dynprobe.finetune.streams import Stream

FAMILIES = (
    "bert", "roberta", "electra", "distilbert", "mpnet", "deberta", "deberta-v2", "gpt2", "llama", "t5", "bart",
)  # fmt: skip
HEADS = ("classifier", "pre_classifier", "score", "classification_head", "pooler")


class Tiny(tf.PreTrainedModel):
    """One linear layer, as a model of its own."""

    config_class = tf.BertConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.layer = nn.Linear(6, 5)
        self.post_init()

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


def tiny(p: float, *, moved: float = 1.0, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """A layer under Mixout whose weight has moved from its anchor."""
    torch.manual_seed(0)
    model: Any = Tiny(tf.BertConfig()).to(dtype).train()
    apply_mixout(model, p, **options)
    with torch.no_grad():
        model.layer.weight += moved * torch.randn_like(model.layer.weight)
    return model


def checkpointing_on(model: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers renames it
        model.gradient_checkpointing_enable({"use_reentrant": False})


class TestFormula:
    @pytest.mark.parametrize("mask", ["columns", "elements"])
    def test_each_weight_is_the_pretrained_or_the_amplified_one(self, mask: Any) -> None:
        layer, p = tiny(0.4, mask=mask).layer, 0.4
        w, u = layer.weight.detach(), layer.anchor
        mixed = layer.mixed_weight().detach()
        kept = ((w - p * u) / (1 - p) - mixed).abs() < 1e-12  # M = 1 in ((1-M) u + M w - p u) / (1 - p)
        replaced = ((u - p * u) / (1 - p) - mixed).abs() < 1e-12  # M = 0
        assert bool((kept ^ replaced).all())
        one_per_column = (kept == kept[:1]).all()
        assert bool(one_per_column) is (mask == "columns")

    @pytest.mark.parametrize("mask", ["columns", "elements"])
    def test_the_mean_is_the_trained_weight(self, mask: Any) -> None:
        n, p = 4000, 0.5
        layer = tiny(p, mask=mask).layer
        mean = torch.stack([layer.mixed_weight().detach() for _ in range(n)]).mean(0)
        spread = (layer.weight - layer.anchor).detach().abs() * (p / (1 - p)) ** 0.5 / n**0.5
        assert bool(((mean - layer.weight.detach()).abs() < 5 * spread).all())  # five standard errors

    @pytest.mark.parametrize("p", [0.0, 0.3, 0.9])
    def test_gradient(self, p: float) -> None:
        model = tiny(p, mask="elements")
        layer, x = model.layer, torch.randn(3, 6, dtype=torch.float64)

        def loss_of(weight: Tensor) -> Tensor:
            torch.manual_seed(5)
            layer.__dict__["_parameters"]["weight"] = weight
            return torch.as_tensor((layer(x) ** 2).sum())

        weight = layer.weight
        assert torch.autograd.gradcheck(loss_of, (weight,))
        loss_of(weight)
        layer._parameters["weight"] = weight
        torch.manual_seed(5)
        kept = (layer.mixed_weight() - layer.anchor).detach() != 0
        torch.manual_seed(5)
        (grad,) = torch.autograd.grad(layer.mixed_weight().sum(), weight)
        assert torch.allclose(grad, kept.double() / (1 - p))

    @pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
    def test_the_published_backward_leaves_a_factor_out(self, p: float) -> None:
        grads = []
        for as_released in (True, False):
            layer = tiny(p, as_released=as_released).layer
            torch.manual_seed(5)
            mixed = layer.mixed_weight()
            grads.append((mixed.detach(), torch.autograd.grad(mixed.sum(), layer.weight)[0]))
        (released_value, released), (value, right) = grads
        assert torch.equal(released_value, value), "forward is the same"
        assert torch.allclose(released, right * (1 - p))  # a tenth at p = 0.9
        assert torch.allclose(released[released != 0], torch.ones(1, dtype=torch.float64))

    def test_no_movement_no_noise(self) -> None:
        model = tiny(0.7, moved=0.0)
        assert torch.equal(model.layer.mixed_weight(), model.layer.weight)

    def test_evaluation_is_exact_and_p_0_too(self) -> None:
        x = torch.randn(4, 6, dtype=torch.float64)
        model, standard = tiny(0.7), tiny(0.0)
        plain = nn.functional.linear(x, model.layer.weight, model.layer.bias)
        assert torch.equal(model.eval()(x), plain)
        assert torch.equal(standard(x), plain)

    @pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
    def test_half_precision(self, kind: torch.dtype) -> None:
        model = tiny(0.5, dtype=kind)
        assert model.layer.anchor.dtype == kind
        assert bool(model(torch.ones(2, 6, dtype=kind)).isfinite().all())

    def test_transposed_layers_are_mixed_by_input_feature(self, classifier_of: Callable[..., Any]) -> None:
        model = classifier_of("gpt2").train()
        apply_mixout(model, 0.5)
        layer = model.transformer.h[0].mlp.c_fc
        assert isinstance(layer, MixoutConv1D)
        with torch.no_grad():
            layer.weight += 1
        kept = (layer.mixed_weight() - layer.anchor).abs() > 0.5  # (in, out)
        assert bool((kept == kept[:, :1]).all())
        assert 0 < int(kept[:, 0].sum()) < 16
        x = torch.randn(3, 16)
        torch.manual_seed(1)
        out = layer(x)
        torch.manual_seed(1)
        assert torch.allclose(out, x @ layer.mixed_weight() + layer.bias, atol=1e-5)
        assert torch.equal(layer.eval()(x), tf.pytorch_utils.Conv1D.forward(layer, x))


class TestModels:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_every_family(self, family: str, classifier_of: Callable[..., Any], batch: Callable[..., Any]) -> None:
        model, inputs = classifier_of(family), batch()
        names, parameters = list(model.state_dict()), dict(model.named_parameters())
        plain = model.eval()(**inputs).logits
        mixed = apply_mixout(model, 0.5)
        assert not any(name.startswith(HEADS) for name in mixed), "the new head is left alone"
        linear = [name for name, part in model.named_modules() if isinstance(part, nn.Linear | tf.pytorch_utils.Conv1D)]
        assert set(mixed) == {name for name in linear if not name.startswith(HEADS)}
        assert dict(model.named_parameters()).keys() == parameters.keys()
        assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
        assert set(model.state_dict()) - set(names) == {f"{name}.anchor" for name in mixed}
        assert torch.equal(model.eval()(**inputs).logits, plain)

        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(2):
            model.train()(**inputs).loss.backward()
            optimizer.step()
        assert any(
            bool((p.grad != 0).any())
            for n, p in model.named_parameters()
            if n.startswith(mixed[0]) and p.grad is not None
        )
        anchors = {name: model.get_submodule(name).anchor for name in mixed}
        assert all(not anchor.requires_grad for anchor in anchors.values())
        trained = model.eval()(**inputs).logits
        assert remove_mixout(model) == mixed
        assert list(model.state_dict()) == names
        assert torch.equal(model.eval()(**inputs).logits, trained)

    def test_what_is_left_out(self, classifier_of: Callable[..., Any]) -> None:
        everything = apply_mixout(classifier_of("bert"), 0.1, new=())
        assert set(everything) - set(apply_mixout(classifier_of("bert"), 0.1)) == {"classifier"}
        released = apply_mixout(classifier_of("bert"), 0.1, as_released=True)
        assert released == everything
        assert apply_mixout(classifier_of("gpt2"), 0.1, as_released=True) == ("score",), "no transposed layers"
        body = classifier_of("bert").bert
        assert "pooler.dense" in apply_mixout(body, 0.1)
        frozen = classifier_of("bert")
        frozen.bert.encoder.layer[0].requires_grad_(False)
        assert not any(name.startswith("bert.encoder.layer.0") for name in apply_mixout(frozen, 0.1))
        language = tf.BertForMaskedLM(classifier_of("bert").config)
        assert "cls.predictions.decoder" in apply_mixout(language, 0.1), "a pretrained output layer"
        assert language.cls.predictions.decoder.weight is language.bert.embeddings.word_embeddings.weight

    @pytest.mark.parametrize("family", ["bert", "bart", "llama", "t5"])
    def test_without_dropout(self, family: str, classifier_of: Callable[..., Any], batch: Callable[..., Any]) -> None:
        options = {"attention_dropout": 0.3} if family == "llama" else {}
        noisy, released, model = (classifier_of(family, **options).train() for _ in range(3))
        apply_mixout(model, 0.0, zero_dropout=True)
        apply_mixout(released, 0.0, zero_dropout=True, as_released=True)
        runs = [[m(**batch()).logits.detach() for _ in range(2)] for m in (noisy, released, model)]
        assert not torch.equal(*runs[0])
        assert torch.equal(*runs[2])
        assert torch.equal(*runs[1]) is (family == "bert"), "the others keep theirs as a number"

    def test_own_stream(self, classifier_of: Callable[..., Any], batch: Callable[..., Any]) -> None:
        model = classifier_of("bert").train()
        torch.manual_seed(3)
        model(**batch())
        plain = torch.rand(1)
        apply_mixout(model, 0.3, stream=Stream("noise", 7))
        torch.manual_seed(3)
        model(**batch())
        assert torch.equal(torch.rand(1), plain), "dropout's own stream is where it was"
        layers = [tiny(0.5, mask="elements", stream=Stream("noise", seed)).layer for seed in (1, 1, 2)]
        first, same, other = ([layer.mixed_weight().detach() for _ in range(2)] for layer in layers)
        assert torch.equal(first[0], same[0])
        assert torch.equal(first[1], same[1])
        assert not torch.equal(first[0], first[1])
        assert not torch.equal(first[0], other[0])
        checkpointing_on(model)
        with pytest.raises(ValueError, match="must run without gradient checkpointing"):
            model(**batch())
        remove_mixout(model)
        model(**batch())

    def test_checkpointing_repeats_the_same_masks(
        self, classifier_of: Callable[..., Any], batch: Callable[..., Any]
    ) -> None:
        grads = []
        for checkpointing in (False, True):
            model = classifier_of("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
            apply_mixout(model, 0.5)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if name.endswith("weight"):
                        parameter += 0.1
            if checkpointing:
                checkpointing_on(model)
            dense, passes = model.bert.encoder.layer[0].intermediate.dense, []
            dense.register_forward_hook(lambda *_, passes=passes: passes.append(1))
            torch.manual_seed(9)
            model(**batch()).loss.backward()
            assert len(passes) == 1 + checkpointing
            grads.append(dense.weight.grad)
        assert torch.allclose(*grads, atol=1e-7)

    def test_save_load_and_go_on(
        self, classifier_of: Callable[..., Any], batch: Callable[..., Any], tmp_path: Path
    ) -> None:
        model, inputs = classifier_of("bert"), batch()
        apply_mixout(model, 0.5)
        anchor = model.bert.pooler.dense.anchor.clone()
        with torch.no_grad():
            model.bert.pooler.dense.weight += 1
        model.save_pretrained(tmp_path / "mixed")
        tf.logging.set_verbosity_error()
        again = tf.BertForSequenceClassification.from_pretrained(tmp_path / "mixed")
        assert torch.equal(again.eval()(**inputs).logits, model.eval()(**inputs).logits), "a plain model"
        apply_mixout(again, 0.5)
        assert not torch.equal(again.bert.pooler.dense.anchor, anchor)
        restore_saved_state(again, tmp_path / "mixed")
        assert torch.equal(again.bert.pooler.dense.anchor, anchor)
        remove_mixout(model)
        model.save_pretrained(tmp_path / "plain")
        from safetensors import safe_open

        with safe_open(tmp_path / "plain/model.safetensors", "pt") as saved:
            assert not any("anchor" in name for name in saved.keys())  # noqa: SIM118

    @pytest.mark.slow
    def test_a_trainer_resumes_it(
        self, classifier_of: Callable[..., Any], batch: Callable[..., Any], tmp_path: Path
    ) -> None:
        rows = [{name: value[row] for name, value in batch(n=24).items()} for row in range(24)]

        def trained(resume: str | None = None) -> Any:
            model = classifier_of("bert")
            apply_mixout(model, 0.5)
            arguments = tf.TrainingArguments(
                output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=8, save_steps=2, seed=1, report_to=[],
                use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, learning_rate=1e-2,
            )  # fmt: skip
            tf.Trainer(model, arguments, train_dataset=rows).train(resume_from_checkpoint=resume)
            return model.state_dict()

        whole = trained()
        again = trained(str(tmp_path / "checkpoint-2"))
        assert all(torch.equal(whole[name], again[name]) for name in whole)

    def test_copies(self, classifier_of: Callable[..., Any]) -> None:
        model = classifier_of("bert")
        apply_mixout(model, 0.5, stream=Stream("noise", 1))
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert isinstance(other.bert.pooler.dense, MixoutLinear)
            assert other.bert.pooler.dense.anchor is not model.bert.pooler.dense.anchor
            streams = {id(part.mixout_stream) for part in other.modules() if isinstance(part, MixoutLinear)}
            assert len(streams) == 1

    @pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's own
    def test_peft_takes_its_layers(self, classifier_of: Callable[..., Any], batch: Callable[..., Any]) -> None:
        peft = pytest.importorskip("peft")
        model = classifier_of("bert")
        apply_mixout(model, 0.5)
        wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
        wrapped.train()(**batch()).loss.backward()
        adapter = model.bert.encoder.layer[0].attention.self.query
        assert adapter.lora_B["default"].weight.grad is not None

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"p": 1.0}, r"`p` must lie in \[0, 1\), where 1 would train nothing; got 1.0"),
            ({"p": -0.1}, r"`p` must lie in \[0, 1\)"),
            ({"p": float("nan")}, r"`p` must lie in \[0, 1\)"),
            ({"p": 0.1, "mask": "rows"}, "`mask` must be 'columns' or 'elements'; got 'rows'"),
            ({"p": 0.1, "as_released": True, "mask": "elements"}, "`as_released` must stand without `mask`"),
            ({"p": 0.1, "new": ("head",)}, r"`new` must name modules of the model, such as \['bert'.*got \['head'\]"),
        ],
    )
    def test_bad_options(self, options: dict[str, Any], message: str, classifier_of: Callable[..., Any]) -> None:
        model = classifier_of("bert")
        with pytest.raises(ValueError, match=message):
            apply_mixout(model, **options)
        assert not any(isinstance(part, MixoutLinear) for part in model.modules())

    def test_bad_models(self, classifier_of: Callable[..., Any]) -> None:
        model = classifier_of("bert")
        with pytest.raises(ValueError, match="must be under Mixout; got one without"):
            remove_mixout(model)
        apply_mixout(model, 0.1)
        with pytest.raises(ValueError, match="must not be under Mixout already"):
            apply_mixout(model, 0.1)
        frozen = classifier_of("bert").requires_grad_(False)
        with pytest.raises(ValueError, match="must have trainable linear layers in its pretrained body"):
            apply_mixout(frozen, 0.1)
