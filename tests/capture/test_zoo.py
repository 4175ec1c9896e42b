"""Every architecture: what is stored is what the model itself returns, at real tokens, whatever the padding."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from torch import nn

from dynprobe.analysis import moments
from dynprobe.analysis.causality import is_causal
from dynprobe.capture.architecture import describe_model
from dynprobe.capture.recorder import Recorder
from dynprobe.capture.settings import CaptureSettings
from dynprobe.errors import CaptureError
from dynprobe.probe_set import ProbeSet
from dynprobe.run import Run, open_run

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 64,
}
GQA = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}
DECODER = {**SMALL}
ENCODERS = {
    "bert": tf.BertConfig(**SMALL),
    "roberta": tf.RobertaConfig(**SMALL),
    "distilbert": tf.DistilBertConfig(
        vocab_size=64, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=64
    ),
    "electra": tf.ElectraConfig(**SMALL, embedding_size=16),
    "albert": tf.AlbertConfig(**SMALL, embedding_size=16),
    "mpnet": tf.MPNetConfig(**SMALL),
    "deberta": tf.DebertaConfig(**SMALL, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "deberta-v2": tf.DebertaV2Config(**SMALL, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "xlnet": tf.XLNetConfig(vocab_size=64, d_model=32, n_layer=2, n_head=4, d_inner=48),
    "modernbert": tf.ModernBertConfig(
        **{**SMALL, "cls_token_id": 3, "sep_token_id": 4}, local_attention=8, global_attn_every_n_layers=2
    ),
}
DECODERS = {
    "gpt2": tf.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2),
    "gpt-neox": tf.GPTNeoXConfig(**SMALL),
    "opt": tf.OPTConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, word_embed_proj_dim=32,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    ),
    "llama": tf.LlamaConfig(**GQA),
    "qwen2": tf.Qwen2Config(**{k: v for k, v in GQA.items() if k != "head_dim"}),
    "qwen2-sliding": tf.Qwen2Config(
        **{k: v for k, v in GQA.items() if k != "head_dim"}, use_sliding_window=True, sliding_window=4, max_window_layers=1
    ),
    "qwen3": tf.Qwen3Config(**GQA),
    "mistral": tf.MistralConfig(**GQA, sliding_window=4),
    "gemma": tf.GemmaConfig(**GQA),
    "gemma2": tf.Gemma2Config(**GQA, sliding_window=4),
    "gemma3": tf.Gemma3TextConfig(**GQA, sliding_window=4, layer_types=["sliding_attention", "full_attention"]),
    "mixtral": tf.MixtralConfig(**GQA, num_local_experts=2, num_experts_per_tok=1),
}  # fmt: skip
BOTH = {
    "t5": tf.T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=3, num_heads=4, pad_token_id=0,
        decoder_start_token_id=0,
    ),
    "bart": tf.BartConfig(
        vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=2,
    ),
}  # fmt: skip
LENGTHS = (3, 11, 7, 9, 4)


class Padding:
    """Stands for a tokenizer: only what padding needs."""

    pad_token_id, all_special_ids = 0, (0, 1, 2)

    def __init__(self, side: str) -> None:
        self.padding_side = side


def features(*, decoder: bool = False) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    rows = [{"input_ids": rng.integers(5, 64, size=length)} for length in LENGTHS]
    if decoder:
        rows = [{**row, "decoder_input_ids": rng.integers(5, 64, size=len(row["input_ids"]) // 2 + 1)} for row in rows]
    return rows


def captured(model: nn.Module, probe: ProbeSet, path: Path) -> Run:
    with Recorder(model.train(), probe, path, settings=CaptureSettings(hidden="all", attention="all")) as recorder:
        recorder.snapshot(0)
    return open_run(path)


def check(run: Run, model: nn.Module, probe: ProbeSet) -> None:
    """Compare the file with a plain eager pass, example by example without padding of the batch."""
    snapshot = run[0]
    model = model.eval()
    model.set_attn_implementation("eager")
    inputs = {name: torch.as_tensor(np.array(value)) for name, value in probe.inputs.items()}
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True, output_attentions=True)
    for stack in snapshot.stacks:
        looks_back = not any(np.triu(block, 1).any() for block in snapshot.attentions(1, stack))
        assert is_causal(moments(run)[0], stack) is looks_back, "the run says what its attention shows"
        prefix = "" if stack == "model" else f"{stack}_"
        rows = snapshot.hidden_rows(stack)
        assert np.array_equal(rows, np.argwhere(probe.real[stack])), "all real tokens, in order"
        for layer in snapshot.layers(stack):
            expected = output[f"{prefix}hidden_states"][layer].numpy()[rows[:, 0], rows[:, 1]]
            np.testing.assert_allclose(snapshot.hidden_states(layer, stack), expected, rtol=2e-3, atol=2e-3)
        kinds = {"self": (f"{prefix}attentions", stack)}
        if stack == "decoder":
            kinds["cross"] = ("cross_attentions", "encoder")
        for kind, (name, keys) in kinds.items():
            assert snapshot.attention_layers(stack, kind) == tuple(range(1, len(output[name]) + 1))
            for layer in snapshot.attention_layers(stack, kind):
                for example, block in enumerate(snapshot.attentions(layer, stack, kind)):
                    real = np.ix_(
                        range(block.shape[0]), *(np.flatnonzero(probe.real[s][example]) for s in (stack, keys))
                    )
                    expected = output[name][layer - 1][example].numpy()[real]
                    np.testing.assert_allclose(block, expected, atol=1e-3)
                    np.testing.assert_allclose(block.sum(-1, dtype=np.float32), 1.0, atol=5e-3)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(name: str, side: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tf.AutoModel.from_config(ENCODERS[name])
    probe = ProbeSet.from_features(features(), tokenizer=Padding(side))
    run = captured(model, probe, tmp_path / "run")
    check(run, model, probe)
    stack = describe_model(model).stacks[0]
    assert not stack.causal
    assert run[0].pooled_kinds() == (("last", "mean") if name == "xlnet" else ("first", "mean"))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", DECODERS)
def test_decoders(name: str, side: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(DECODERS[name])
    probe = ProbeSet.from_features(features(), tokenizer=Padding(side))
    run = captured(model, probe, tmp_path / "run")
    check(run, model, probe)
    assert describe_model(model).stacks[0].causal
    assert run[0].pooled_kinds() == ("last", "mean")
    assert run[0].n_heads() == 4, "query heads, not key-value heads"
    for block in run[0].attentions(2):
        assert not np.triu(block, 1).any(), "no token sees what follows it"
    check_likelihood(run, model, probe)


def check_likelihood(run: Run, model: nn.Module, probe: ProbeSet) -> None:
    """Each token's likelihood given the tokens before it, one by one."""
    said = run[0].outputs()
    assert said is not None
    assert said.kind == "nll"
    assert said.offsets is not None
    with torch.no_grad():
        inputs = {name: torch.as_tensor(np.array(value)) for name, value in probe.inputs.items()}
        log_p = model.eval()(**inputs).logits.log_softmax(-1).numpy()
    for example in range(probe.n_examples):
        places = np.flatnonzero(probe.real["model"][example])
        tokens = probe.inputs["input_ids"][example]
        expected = [-log_p[example, before, tokens[now]] for before, now in pairwise(places)]
        got = said.values[said.offsets[example] : said.offsets[example + 1]]
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", BOTH)
def test_encoder_decoders(name: str, side: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tf.AutoModelForSeq2SeqLM.from_config(BOTH[name])
    probe = ProbeSet.from_features(features(decoder=True), tokenizer=Padding(side))
    run = captured(model, probe, tmp_path / "run")
    assert run[0].stacks == ("encoder", "decoder")
    assert (len(run[0].layers("encoder")), len(run[0].layers("decoder"))) == (3, 4)
    check(run, model, probe)


def test_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = tf.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=16, patch_size=8
    )
    model = tf.ViTModel(config)
    pixels = np.random.default_rng(0).normal(size=(5, 3, 16, 16)).astype(np.float32)
    probe = ProbeSet.from_features([{"pixel_values": image} for image in pixels])
    run = captured(model, probe, tmp_path / "run")
    model = model.eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        chosen = torch.as_tensor(np.array(probe.inputs["pixel_values"]))
        output = model(chosen, output_hidden_states=True, output_attentions=True)
    expected = output.hidden_states
    assert run[0].hidden_states(1).shape == (5 * 5, 32), "four patches and [CLS], all real"
    np.testing.assert_allclose(run[0].hidden_states(1), expected[1].reshape(-1, 32), rtol=2e-3, atol=2e-3)
    for example, block in enumerate(run[0].attentions(1)):
        np.testing.assert_allclose(block, output.attentions[0][example].numpy(), atol=1e-3)
    assert run.probe_set.real["model"].shape == (5, 5)


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")  # names that peft still uses
@pytest.mark.parametrize("kind", ["lora", "prompt", "prefix"])
def test_adapters(kind: str, tmp_path: Path) -> None:
    import peft

    torch.manual_seed(0)
    base = tf.AutoModelForCausalLM.from_config(DECODERS["gpt2"])
    config = {
        "lora": lambda: peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"], fan_in_fan_out=True),
        "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    }[kind]()
    model = peft.get_peft_model(base, config)
    with torch.no_grad():  # as after some training: a fresh LoRA changes nothing
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    probe = ProbeSet.from_features(features(), tokenizer=Padding("right"))
    run = captured(model, probe, tmp_path / "run")
    assert len(run[0].hidden_states(2)) == sum(LENGTHS), "virtual tokens are no tokens of the text"
    n_virtual = 0 if kind == "lora" else 3
    inputs = {name: torch.as_tensor(np.array(value)) for name, value in probe.inputs.items()}
    base.set_attn_implementation("eager")
    with torch.no_grad():
        output = model.eval()(**inputs, output_hidden_states=True, output_attentions=True)
    rows, n_before = run[0].hidden_rows(), 3 if kind == "prompt" else 0
    for layer in run[0].layers():
        expected = output.hidden_states[layer].numpy()[rows[:, 0], rows[:, 1] + n_before]
        np.testing.assert_allclose(run[0].hidden_states(layer), expected, rtol=2e-3, atol=2e-3)
    for example, length in enumerate(probe.real["model"].sum(axis=1)):
        expected = output.attentions[1][example].numpy()[:, n_before : n_before + length, : n_virtual + length]
        np.testing.assert_allclose(run[0].attentions(2)[example], expected, atol=1e-3)
    for block, length in zip(run[0].attentions(1), probe.real["model"].sum(axis=1), strict=True):
        assert block.shape == (4, length, length + n_virtual)
        np.testing.assert_allclose(block.sum(-1, dtype=np.float32), 1.0, atol=5e-3)


def test_attention_that_is_no_distribution_over_tokens_is_refused_by_name(tmp_path: Path) -> None:
    config = tf.LongformerConfig(**SMALL, attention_window=4)
    model = tf.LongformerModel(config)
    probe = ProbeSet.from_features(features(), tokenizer=Padding("right"))
    with pytest.raises(CaptureError, match="LongformerModel with banded attention rows"):
        Recorder(model, probe, tmp_path / "run")


def test_a_module_without_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="must be a transformers model"):
        Recorder(nn.Linear(2, 2), ProbeSet.from_features(features()), tmp_path / "run")
