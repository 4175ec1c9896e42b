"""What a model says is stored as the model says it, for each kind of head, against a slow reading of its own output."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from torch import nn

from dynprobe.capture.recorder import Recorder
from dynprobe.capture.settings import CaptureSettings
from dynprobe.probe_set import ProbeSet
from dynprobe.run import Outputs, open_run

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
}
BOTH: dict[str, Any] = {
    "vocab_size": 50,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 64,
    "eos_token_id": 2,
}


def examples(*, decoder: bool = False) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    rows = [{"input_ids": np.append(rng.integers(5, 50, size=length), 2)} for length in (3, 9, 1, 6)]
    return (
        [{**row, "decoder_input_ids": rng.integers(5, 50, size=4)[: i + 1]} for i, row in enumerate(rows)]
        if decoder
        else rows
    )


def said(model: nn.Module, probe: ProbeSet, path: Path) -> Outputs:
    with Recorder(model, probe, path, settings=CaptureSettings(attention="none")) as recorder:
        size = recorder.snapshot(0).stat().st_size
    assert size <= recorder.plan.bytes_per_snapshot + 64 * 1024
    outputs = open_run(path)[0].outputs()
    assert outputs is not None
    return outputs


def own_words(model: nn.Module, probe: ProbeSet) -> Any:
    inputs = {name: torch.as_tensor(np.array(value)) for name, value in probe.inputs.items()}
    with torch.no_grad():
        return model.eval()(**inputs)


@pytest.mark.parametrize("n_labels", [1, 3])
def test_classification_and_regression(n_labels: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tf.BertForSequenceClassification(tf.BertConfig(**SMALL, num_labels=n_labels))
    probe = ProbeSet.from_features(examples())
    outputs = said(model, probe, tmp_path / "run")
    assert (outputs.kind, outputs.offsets) == ("logits", None)
    assert outputs.values.shape == (4, n_labels)
    assert outputs.values.dtype == np.float32
    np.testing.assert_allclose(outputs.values, own_words(model, probe).logits.numpy(), atol=1e-5)


def test_a_classifier_with_encoder_and_decoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tf.BartForSequenceClassification(tf.BartConfig(**BOTH, num_labels=3))
    rows = [{**row, "decoder_input_ids": np.append(2, row["input_ids"][:-1])} for row in examples()]
    probe = ProbeSet.from_features(rows)
    outputs = said(model, probe, tmp_path / "run")
    np.testing.assert_allclose(outputs.values, own_words(model, probe).logits.numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_translation_says_how_likely_each_word_of_the_target_is(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    t5 = tf.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    model = (
        tf.T5ForConditionalGeneration(t5) if kind == "t5" else tf.BartForConditionalGeneration(tf.BartConfig(**BOTH))
    )
    probe = ProbeSet.from_features(examples(decoder=True))
    outputs = said(model, probe, tmp_path / "run")
    assert outputs.kind == "nll"
    assert outputs.offsets is not None
    log_p = own_words(model, probe).logits.double().log_softmax(-1).numpy()
    assert list(np.diff(outputs.offsets)) == [0, 1, 2, 3], "the first token is given"
    for example in range(4):
        tokens = probe.inputs["decoder_input_ids"][example]
        n = int(probe.real["decoder"][example].sum())
        expected = [-log_p[example, t - 1, tokens[t]] for t in range(1, n)]
        np.testing.assert_allclose(
            outputs.values[outputs.offsets[example] : outputs.offsets[example + 1]], expected, atol=1e-5
        )


def test_a_model_without_a_head_says_nothing(tmp_path: Path) -> None:
    model = tf.BertModel(tf.BertConfig(**SMALL))
    with Recorder(model, ProbeSet.from_features(examples()), tmp_path / "run") as recorder:
        recorder.snapshot(0)
    assert open_run(tmp_path / "run")[0].outputs() is None


def test_outputs_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    from dynprobe.errors import CaptureError

    model = tf.BertForSequenceClassification(tf.BertConfig(**SMALL, num_labels=3))
    with torch.no_grad():
        model.classifier.bias[1] = float("inf")
    with (
        Recorder(model, ProbeSet.from_features(examples()), tmp_path / "run") as recorder,
        pytest.raises(CaptureError, match=r"step 9: activations must be finite; got Inf in the outputs \(logits\)"),
    ):
        recorder.snapshot(9)
