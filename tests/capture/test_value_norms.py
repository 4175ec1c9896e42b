"""Value norms against a slow computation from the weights themselves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from torch import nn

from dynprobe.capture.recorder import Recorder
from dynprobe.capture.settings import CaptureSettings
from dynprobe.errors import CaptureError
from dynprobe.probe_set import ProbeSet
from dynprobe.run import open_run

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
}


def probe_set() -> ProbeSet:
    return ProbeSet.from_features([{"input_ids": np.arange(5, 9 + i)} for i in range(4)])


def captured(model: nn.Module, path: Path) -> np.ndarray:
    settings = CaptureSettings(value_norms=True)
    with Recorder(model, probe_set(), path, settings=settings) as recorder:
        recorder.snapshot(0)
    return open_run(path)[0].value_norms(1)


def inputs_of(model: nn.Module, module: nn.Module) -> torch.Tensor:
    """(n_tokens, d_model) what the attention of block 1 reads, of the real tokens, one example after another."""
    seen: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _m, args: seen.append(args[0][0]))
    probe = probe_set()
    for ids, real in zip(probe.inputs["input_ids"], probe.real["model"], strict=True):
        model.eval()(torch.as_tensor(np.array(ids[real]))[None])
    handle.remove()
    return torch.cat(seen)


def slow_norms(x: torch.Tensor, value: Any, output: Any, *, n_heads: int, n_values: int) -> np.ndarray:
    """Token by token and head by head: the head's part of the value vector, through its columns of the output matrix."""
    d_head = 16 // n_heads
    norms = np.zeros((len(x), n_heads))
    for token in range(len(x)):
        made = value(x[token])
        for head in range(n_heads):
            shared = head // (n_heads // n_values)
            vector = made[shared * d_head : (shared + 1) * d_head]
            norms[token, head] = float((output[:, head * d_head : (head + 1) * d_head] @ vector).norm())
    return norms


@torch.no_grad()
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "neox"])
def test_norms_are_those_of_the_weights(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    if name == "bert":
        model: Any = tf.BertModel(tf.BertConfig(**SMALL))
        block = model.encoder.layer[0].attention
        value, output, module, n_values = block.self.value, block.output.dense.weight, block.self.value, 4
    elif name == "llama":
        model = tf.LlamaModel(tf.LlamaConfig(**SMALL, num_key_value_heads=2))
        block = model.layers[0].self_attn
        value, output, module, n_values = block.v_proj, block.o_proj.weight, block.v_proj, 2
    elif name == "gpt2":
        model = tf.GPT2Model(tf.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=4, n_positions=64))
        block = model.h[0].attn
        value = lambda x: block.c_attn(x)[32:]  # noqa: E731 - queries, keys, values
        output, module, n_values = block.c_proj.weight.T, block.c_attn, 4
    else:
        model = tf.GPTNeoXModel(tf.GPTNeoXConfig(**SMALL))
        block = model.layers[0].attention
        value = lambda x: block.query_key_value(x).reshape(4, 3, 4)[:, 2].reshape(-1)  # noqa: E731 - of each head
        output, module, n_values = block.dense.weight, block.query_key_value, 4
    got = captured(model, tmp_path / "run")
    expected = slow_norms(inputs_of(model, module), value, output, n_heads=4, n_values=n_values)
    np.testing.assert_allclose(got, expected, rtol=2e-3)


def test_values_that_are_not_where_they_should_be_are_refused(tmp_path: Path) -> None:
    """The check is the model's own arithmetic: attention times values must be what the output projection is given."""
    torch.manual_seed(0)
    model = tf.BertModel(tf.BertConfig(**SMALL))
    model.encoder.layer[1].attention.output.dense.register_forward_pre_hook(
        lambda _m, args: (args[0] * 1.5,), prepend=True
    )
    with pytest.raises(CaptureError, match="must keep its values where known models do; got BertModel"):
        captured(model, tmp_path / "run")
    xlnet = tf.XLNetModel(tf.XLNetConfig(vocab_size=50, d_model=16, n_layer=2, n_head=4, d_inner=16))
    with pytest.raises(CaptureError, match=r"got XLNetModel\. Capture it without value norms"):
        captured(xlnet, tmp_path / "xlnet")
