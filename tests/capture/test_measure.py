"""One pass over the probe set: what a model must give, and the errors that name what it does not."""

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
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
}


def probe_set(**extra: np.ndarray) -> ProbeSet:
    return ProbeSet.from_features([{"input_ids": np.arange(5, 9 + i), **extra} for i in range(4)])


def snapshot(model: nn.Module, path: Path, *, probe: ProbeSet | None = None, attention: str = "all") -> None:
    with Recorder(model, probe or probe_set(), path, settings=CaptureSettings(attention=attention)) as recorder:
        recorder.snapshot(0)


class Changed(tf.BertModel):
    """A BERT whose attentions are changed on their way out, as other implementations change them."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        if output.attentions:
            output["attentions"] = self.change(output.attentions)
        return output


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda a: (), r"must return 2 tensors in `attentions`, one per layer; got 0\. Its attention implementation"),
        (lambda a: a[:1], "must return 2 tensors in `attentions`, one per layer; got 1"),
        (lambda a: (a[0], None), "must return 2 tensors in `attentions`"),
        (lambda a: (a[0], a[1] * 0.9), r"self attention of block 2 must be probabilities: .* got a row that sums to 1 ± 0\.1"),
        (lambda a: (a[0], a[1] * float("nan")), "attention of block 2 must be probabilities"),
        (lambda a: (a[0], a[1][..., :3]), r"attention of block 2 must be \(examples, heads, 7, 7\); got \(4, 2, 7, 3\)"),
        (lambda a: (a[0], a[1][0]), "attention of block 2 must be"),
    ],
)  # fmt: skip
def test_attention_that_is_none_is_refused(change: Any, complaint: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Changed(tf.BertConfig(**SMALL))
    model.change = change
    with pytest.raises(CaptureError, match=complaint):
        snapshot(model, tmp_path / "run")
    assert open_run(tmp_path / "run").steps == ()


def test_train_mode_attention_would_be_refused(tmp_path: Path) -> None:
    """Dropout makes rows that do not sum to one; the eval mode of the guard is what makes them."""
    torch.manual_seed(0)
    model = tf.BertModel(tf.BertConfig(**SMALL, attention_probs_dropout_prob=0.5)).train()

    def stay_in_training(module: nn.Module, _: Any) -> None:
        module.train()

    model.encoder.layer[0].attention.self.register_forward_pre_hook(stay_in_training)
    with pytest.raises(CaptureError, match="must be probabilities"):
        snapshot(model, tmp_path / "run")


def test_what_has_no_attention_over_tokens_is_captured_without(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tf.LongformerModel(tf.LongformerConfig(**{**SMALL, "pad_token_id": 1}, attention_window=4))
    with pytest.raises(CaptureError, match="Capture it without attention"):
        snapshot(model, tmp_path / "run")
    snapshot(model, tmp_path / "run", attention="none")
    run = open_run(tmp_path / "run")
    assert run[0].layers() == (0, 1, 2)
    assert run[0].attention_layers() == ()
    assert run[0].n_heads() == 0


class Tuples(tf.BertModel):
    """A model that always answers with a tuple."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **{**kwargs, "return_dict": False})


def test_a_model_must_return_named_outputs(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="must return a transformers output object; got tuple"):
        snapshot(Tuples(tf.BertConfig(**SMALL)), tmp_path / "run")


def test_probe_sets_of_the_wrong_kind_of_model_are_refused(tmp_path: Path) -> None:
    """Without this check every position, padding too, would count as a token."""
    bart = tf.BartModel(
        tf.BartConfig(
            vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=64,
        )
    )  # fmt: skip
    with pytest.raises(
        CaptureError, match=r"must hold the tokens of encoder and decoder; got inputs \['attention_mask'"
    ):
        snapshot(bart, tmp_path / "run")
    both = probe_set(decoder_input_ids=np.arange(3))
    with pytest.raises(CaptureError, match=r"must hold the tokens of model; got inputs .*'decoder_input_ids'"):
        snapshot(tf.BertModel(tf.BertConfig(**SMALL)), tmp_path / "run", probe=both)
    assert not (tmp_path / "run").exists(), "refused before anything is made"
