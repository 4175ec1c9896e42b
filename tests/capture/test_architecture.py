"""What capture reads from a model: stacks, causality, sizes; and what it refuses."""

from collections.abc import Callable

import pytest
import torch
import transformers as tf
from torch import nn

from dynprobe.capture.architecture import describe_model, require_token_attention
from dynprobe.errors import CaptureError

SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize(
    ("model", "causal", "pooled"),
    [
        (lambda: tf.BertModel(tf.BertConfig(**SMALL)), False, "first"),
        (lambda: tf.BertLMHeadModel(tf.BertConfig(**SMALL, is_decoder=True)), True, "last"),
        (lambda: tf.BloomModel(tf.BloomConfig(vocab_size=50, hidden_size=16, n_layer=2, n_head=2)), True, "last"),
        (
            lambda: tf.XLNetLMHeadModel(tf.XLNetConfig(vocab_size=50, d_model=16, n_layer=2, n_head=2, d_inner=16)),
            False,
            "last",
        ),
        (lambda: tf.GPT2Model(tf.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2)), True, "last"),
        (
            lambda: tf.GPTJModel(tf.GPTJConfig(vocab_size=50, n_embd=16, n_layer=2, n_head=2, rotary_dim=4)),
            True,
            "last",
        ),
    ],
    ids=["bert", "bert-decoder", "bloom", "xlnet", "gpt2", "gptj"],
)
def test_direction_and_the_stand_in_for_cls(model: Callable[[], nn.Module], causal: bool, pooled: str) -> None:
    built = model()
    stack = describe_model(built).stacks[0]
    assert (stack.causal, stack.pooled[0]) == (causal, pooled)
    assert (stack.n_layers, stack.d_model, stack.n_heads) == (2, 16, 2)
    # The claim itself: in a causal model the last token does not reach the first.
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        one, other = (
            built.eval()(i, output_hidden_states=True).hidden_states[-1] for i in (ids, ids + torch.tensor([0, 0, 1]))
        )
    assert torch.equal(one[:, 0], other[:, 0]) == causal


def test_weights_are_counted() -> None:
    model = tf.BertForSequenceClassification(tf.BertConfig(**SMALL, num_labels=7))
    model.bert.requires_grad_(False)
    found = describe_model(model)
    assert found.n_trainable == 16 * 7 + 7
    assert found.n_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.n_labels == 7
    assert "forward_names" not in found.facts()


def test_what_is_no_transformer_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"must be a transformers model .* got torch.nn.modules.linear.Linear"):
        describe_model(nn.Linear(2, 2))
    with pytest.raises(CaptureError, match=r"must state one of \['num_hidden_layers'.*got none in ResNetConfig"):
        describe_model(tf.ResNetModel(tf.ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1])))


def test_attention_of_other_kinds_is_refused_by_name() -> None:
    config = tf.BigBirdConfig(**SMALL, block_size=4)
    with pytest.raises(CaptureError, match="got BigBirdModel with block-sparse attention"):
        require_token_attention(describe_model(tf.BigBirdModel(config)))
    require_token_attention(describe_model(tf.BertModel(tf.BertConfig(**SMALL))))


class FullyShardedDataParallel(nn.Module):
    """Stands for torch's own, which needs several processes."""


def test_sharded_weights_are_refused_and_do_not_hang() -> None:
    model = tf.BertModel(tf.BertConfig(**SMALL))
    model.add_module("part", FullyShardedDataParallel())
    with pytest.raises(
        CaptureError, match=r"must hold whole weights, .*; got weights sharded by FullyShardedDataParallel"
    ):
        describe_model(model)
    model = tf.BertModel(tf.BertConfig(**SMALL))
    next(model.parameters()).ds_id = 3  # type: ignore[attr-defined]
    with pytest.raises(CaptureError, match="sharded by DeepSpeed ZeRO-3"):
        describe_model(model)
