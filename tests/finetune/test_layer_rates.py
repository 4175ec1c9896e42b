"""Layer-wise learning rates: golden values, and every parameter of every family in exactly one group."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers as tf
from hypothesis import given
from hypothesis import strategies as st

from dynprobe.finetune.layer_rates import layerwise_param_groups, layerwise_rates

ONE_STACK = ("bert", "roberta", "electra", "distilbert", "mpnet", "deberta", "deberta-v2", "gpt2", "llama")
TWO_STACKS = ("t5", "bart")


class TestRates:
    def test_golden(self) -> None:
        rates = layerwise_rates(24, learning_rate=2e-5, decay=0.95)
        assert rates.head == 2e-5
        assert rates.blocks[0] == pytest.approx(1.9e-5, rel=1e-12)
        assert rates.blocks[-1] == pytest.approx(5.840e-6, abs=5.001e-10)
        assert rates.embeddings == pytest.approx(5.548e-6, abs=5.001e-10)

    @given(n=st.integers(0, 48), decay=st.floats(0.1, 1.0), offset=st.sampled_from([0, 1, 2]))
    def test_each_is_the_decayed_one_above(self, n: int, decay: float, offset: int) -> None:
        rates = layerwise_rates(n, learning_rate=1.0, decay=decay, head_offset=offset)
        ladder = [*rates.blocks, rates.embeddings]
        assert ladder[0] == pytest.approx(decay**offset)
        assert all(below == pytest.approx(above * decay) for above, below in pairwise(ladder))

    def test_conventions(self) -> None:
        electra = layerwise_rates(12, learning_rate=1.0, decay=0.8, head_offset=2)
        assert electra.blocks[0] == pytest.approx(0.64)
        xlnet = layerwise_rates(12, learning_rate=1.0, decay=0.8, decay_embeddings=False)
        assert xlnet.embeddings == 1.0
        assert set(layerwise_rates(3, learning_rate=1.0, decay=1.0).blocks) == {1.0}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"n_blocks": -1}, "`n_blocks` must be at least 0; got -1"),
            ({"learning_rate": 0.0}, "`learning_rate` must be above 0 and finite; got 0.0"),
            ({"learning_rate": float("nan")}, "`learning_rate` must be above 0"),
            ({"decay": 0.0}, r"`decay` must lie in \(0, 1\]"),
            ({"decay": 1.1}, r"`decay` must lie in \(0, 1\].*got 1.1"),
            ({"head_offset": 3}, "`head_offset` must be 0, 1 or 2; got 3"),
        ],
    )
    def test_bad_options(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            layerwise_rates(**{"n_blocks": 2, "learning_rate": 1.0, **options})


def rate_by_name(model: Any, **options: Any) -> dict[str, float]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = layerwise_param_groups(model, learning_rate=1.0, decay=0.5, **options)
    return {names[parameter]: group["lr"] for group in groups for parameter in group["params"]}


class TestGroups:
    @pytest.mark.parametrize("family", ONE_STACK + TWO_STACKS)
    def test_every_trainable_parameter_in_exactly_one_group(
        self, family: str, classifier_of: Callable[..., Any]
    ) -> None:
        model = classifier_of(family)
        next(iter(model.parameters())).requires_grad_(False)
        groups = layerwise_param_groups(model, learning_rate=1.0, weight_decay=0.1)
        held = [parameter for group in groups for parameter in group["params"]]
        wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert len(held) == len(wanted)
        assert set(held) == set(wanted)
        assert all(group["params"] for group in groups)
        assert groups[0]["name"] == "head", "schedulers and logs show the first group's rate"
        torch.optim.AdamW(groups)

    @pytest.mark.parametrize("family", ONE_STACK)
    def test_rates_of_one_stack(self, family: str, classifier_of: Callable[..., Any]) -> None:
        rates = rate_by_name(classifier_of(family))
        for name, rate in rates.items():
            block = next((int(part) for part in name.split(".") if part.isdigit()), None)
            if block is not None:
                wanted = (0.25, 0.5)[block]
            elif "pooler" in name or name.startswith(("classifier", "pre_classifier", "score")):
                wanted = 1.0
            elif name in ("transformer.ln_f.weight", "transformer.ln_f.bias", "model.norm.weight"):
                wanted = 0.5
            else:
                wanted = 0.125
            assert rate == wanted, name
        assert set(rates.values()) == {1.0, 0.5, 0.25, 0.125}

    @pytest.mark.parametrize("family", TWO_STACKS)
    def test_rates_of_encoder_and_decoder(self, family: str, classifier_of: Callable[..., Any]) -> None:
        rates = rate_by_name(classifier_of(family))
        for name, rate in rates.items():
            side = next((side for side in ("encoder", "decoder") if f"{side}." in name), None)
            block = next((int(part) for part in name.split(".") if part.isdigit()), None)
            if block is not None and ("block" in name or "layers" in name):
                wanted = 0.5 ** ({"decoder": 2, "encoder": 4}[str(side)] - block)
            elif "final_layer_norm" in name:
                wanted = {"decoder": 0.5, "encoder": 0.125}[str(side)]
            else:
                wanted = 1.0 if "classification_head" in name else 0.5**5
            assert rate == wanted, name

    @pytest.mark.parametrize("family", ONE_STACK + TWO_STACKS)
    def test_weight_decay_by_kind_of_module(self, family: str, classifier_of: Callable[..., Any]) -> None:
        model = classifier_of(family)
        names = {parameter: name for name, parameter in model.named_parameters()}
        groups = layerwise_param_groups(model, learning_rate=1.0, weight_decay=0.1)
        free = {names[p] for group in groups if group["weight_decay"] == 0 for p in group["params"]}
        norms = {name for name, part in model.named_modules() if "Norm" in type(part).__name__}
        for name in names.values():
            assert (name in free) is (name.endswith("bias") or name.rpartition(".")[0] in norms), name
        assert any("relative_attention_bias.weight" in name for name in set(names.values()) - free) is (
            family in ("mpnet", "t5")
        )

    def test_the_published_groups_do_not_decay_the_head(self, classifier_of: Callable[..., Any]) -> None:
        model = classifier_of("bert")
        for as_released, decayed in ((True, {0.0}), (False, {0.0, 0.1})):
            groups = layerwise_param_groups(model, learning_rate=1.0, weight_decay=0.1, as_released=as_released)
            assert {group["weight_decay"] for group in groups if group["name"] == "head"} == decayed
            assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))

    def test_a_schedule_scales_every_rate(self, classifier_of: Callable[..., Any]) -> None:
        optimizer = torch.optim.SGD(layerwise_param_groups(classifier_of("bert"), learning_rate=1.0, decay=0.5))
        schedule = tf.get_linear_schedule_with_warmup(optimizer, 4, 8)
        for _ in range(2):
            optimizer.step(), schedule.step()
        assert schedule.get_last_lr() == [0.5, 0.25, 0.125, 0.0625]

    def test_bodies_and_language_models(self, classifier_of: Callable[..., Any]) -> None:
        body = rate_by_name(classifier_of("bert").bert)
        assert body["pooler.dense.weight"] == 1.0
        assert body["encoder.layer.1.output.dense.weight"] == 0.5
        language = rate_by_name(tf.GPT2LMHeadModel(classifier_of("gpt2").config))
        assert language["transformer.wte.weight"] == 0.125, "tied: embeddings"

    def test_other_families(self) -> None:
        xlnet = tf.XLNetForSequenceClassification(
            tf.XLNetConfig(vocab_size=64, d_model=16, n_layer=2, n_head=2, d_inner=24)
        )
        assert set(rate_by_name(xlnet).values()) == {1.0, 0.5, 0.25, 0.125}

    def test_bad_models(self, classifier_of: Callable[..., Any]) -> None:
        small = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 64}
        albert = tf.AlbertForSequenceClassification(tf.AlbertConfig(num_hidden_layers=2, embedding_size=8, **small))
        with pytest.raises(
            ValueError, match=r"blocks with weights of their own; got Albert.* 2 layers share .* 1 group"
        ):
            layerwise_param_groups(albert, learning_rate=1.0)
        cut = classifier_of("bert")
        del cut.bert.encoder.layer[1]
        with pytest.raises(ValueError, match=r"in a list as long as its configuration says \(\[2\]\); got"):
            layerwise_param_groups(cut, learning_rate=1.0)
        with pytest.raises(ValueError, match="`weight_decay` must be at least 0 and finite; got -1"):
            layerwise_param_groups(classifier_of("bert"), learning_rate=1.0, weight_decay=-1)
        with pytest.raises(ValueError, match="`model` must be a transformers model"):
            layerwise_param_groups(torch.nn.Linear(2, 2), learning_rate=1.0)
