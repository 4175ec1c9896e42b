"""Attention is taken off a model block by block; what goes through its head is kept."""

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from dynprobe.capture.architecture import describe_model
from dynprobe.capture.guard import set_eager_attention, undisturbed
from dynprobe.capture.measure import batches, find_taps, measure
from dynprobe.capture.recorder import Recorder
from dynprobe.capture.settings import CaptureSettings
from dynprobe.capture.taps import Taps
from dynprobe.errors import CaptureError, UsageError
from dynprobe.probe_set import ProbeSet
from dynprobe.run import Run, open_run

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
}
DEBERTA = tf.DebertaV2Config(**SMALL, relative_attention=True, pos_att_type=["p2c", "c2p"])
MODELS = {
    "bert": lambda: tf.BertForSequenceClassification(tf.BertConfig(**SMALL)),
    "albert": lambda: tf.AlbertForSequenceClassification(tf.AlbertConfig(**SMALL, embedding_size=8)),
    "mpnet": lambda: tf.MPNetForSequenceClassification(tf.MPNetConfig(**SMALL)),
    "deberta-v2": lambda: tf.DebertaV2ForSequenceClassification(DEBERTA),
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL, num_key_value_heads=1)),
    "t5": lambda: tf.T5ForConditionalGeneration(
        tf.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=3, num_heads=2, decoder_start_token_id=0)
    ),
}


def probe_set(*, decoder: bool = False) -> ProbeSet:
    rows = [{"input_ids": np.arange(5, 16 + i)} for i in range(4)]
    return ProbeSet.from_features(
        [{**row, "decoder_input_ids": row["input_ids"][:6]} if decoder else row for row in rows]
    )


def model_of(name: str) -> tuple[nn.Module, ProbeSet]:
    torch.manual_seed(0)
    return MODELS[name](), probe_set(decoder=name == "t5")


def captured(model: nn.Module, probe: ProbeSet, path: Path, **asked: Any) -> Run:
    with Recorder(model, probe, path, settings=CaptureSettings(**asked)) as recorder:
        recorder.snapshot(0)
    return open_run(path)


@pytest.mark.parametrize("name", MODELS)
def test_only_one_block_of_attention_is_in_memory(name: str) -> None:
    model, probe = model_of(name)
    architecture = describe_model(model)
    alive: list[weakref.ref[Tensor]] = []
    together: list[int] = []

    def take(_key: tuple[str, str], _layer: int, attention: Tensor) -> None:
        alive.append(weakref.ref(attention))
        together.append(sum(reference() is not None for reference in alive))

    with undisturbed(model) as quiet:
        set_eager_attention(quiet)
        taps = find_taps(quiet, probe, architecture, attention=True)
        measure(quiet, next(batches(probe, architecture, torch.device("cpu"))), architecture, take=take, taps=taps)
        assert max(together) <= 2, "the block before may wait until the model lets go of it"
        together.clear()
        alive.clear()
        measure(quiet, next(batches(probe, architecture, torch.device("cpu"))), architecture, take=take)
    assert max(together) > 2, "without taps all blocks are there at once"


class NeedsItsAttention(tf.BertModel):
    """A model whose hidden states depend on the attention that its blocks return."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        if output.attentions:
            output["hidden_states"] = tuple(h + output.attentions[0].mean() for h in output.hidden_states)
        return output


def test_attention_that_the_model_needs_is_left_to_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, probe = NeedsItsAttention(tf.BertConfig(**SMALL)), probe_set()
    with undisturbed(model) as quiet:
        set_eager_attention(quiet)
        assert not find_taps(quiet, probe, describe_model(model), attention=True).attention
    assert open_run(captured(model, probe, tmp_path / "run").path)[0].attention_layers() == (1, 2, 3, 4)


def test_a_model_that_changes_its_way_is_refused() -> None:
    model, probe = model_of("bert")
    architecture = describe_model(model)
    with undisturbed(model) as quiet:
        set_eager_attention(quiet)
        taps = find_taps(quiet, probe, architecture, attention=True)
        half = Taps(dict(list(taps.attention.items())[:2]))
        batch = next(batches(probe, architecture, torch.device("cpu")))
        with pytest.raises(CaptureError, match="must make attention of 4 blocks, as when it was looked at; got 2"):
            measure(quiet, batch, architecture, take=lambda *_: None, taps=half)


def test_what_goes_through_the_head_is_kept(tmp_path: Path) -> None:
    model, probe = model_of("bert")
    snapshot = captured(model, probe, tmp_path / "run")[0]
    pooled, given, said = snapshot.pooler_output(), snapshot.classifier_input(), snapshot.outputs()
    assert pooled is not None
    assert given is not None
    assert said is not None
    np.testing.assert_array_equal(pooled, given)  # dropout does nothing here
    weight, bias = model.classifier.weight.detach().numpy(), model.classifier.bias.detach().numpy()
    np.testing.assert_allclose(given.astype(np.float32) @ weight.T + bias, said.values, atol=2e-3)
    decoder = captured(*model_of("llama"), tmp_path / "decoder")[0]
    assert decoder.pooler_output() is None
    assert decoder.classifier_input() is None


def test_attention_of_cls_alone(tmp_path: Path) -> None:
    for name, row in (("bert", 0), ("llama", -1)):
        model, probe = model_of(name)
        whole = captured(model, probe, tmp_path / name / "whole")[0]
        rows = captured(model, probe, tmp_path / name / "rows", attention_rows="cls")[0]
        assert rows.attention_layers() == ()
        assert rows.attention_layers(kind="cls") == (1, 2, 3, 4)
        for layer in (1, 4):
            for all_rows, one in zip(whole.attentions(layer), rows.attentions(layer, kind="cls"), strict=True):
                np.testing.assert_array_equal(one[:, 0], all_rows[:, row])


def test_layers_are_chosen_by_number(tmp_path: Path) -> None:
    model, probe = model_of("bert")
    run = captured(model, probe, tmp_path / "run", layers="0,2,-1")
    assert run[0].layers() == (0, 2, 4)
    assert run[0].attention_layers() == (2, 4)
    assert run[0].pooled_layers("mean") == (0, 1, 2, 3, 4)
    with pytest.raises(UsageError, match=r"`layers` must lie in 0\.\.4 .*; got \[5, -6\]"):
        Recorder(model, probe, tmp_path / "other", settings=CaptureSettings(layers="5,-6"))
    with pytest.raises(UsageError, match="`layers` must be 'all' or numbers such as 0,6,-1"):
        CaptureSettings(layers="first")


def test_cross_attention_can_be_left_out(tmp_path: Path) -> None:
    model, probe = model_of("t5")
    with_cross, without = (
        captured(model, probe, tmp_path / str(asked), cross_attention=asked)[0] for asked in (True, False)
    )
    assert with_cross.attention_layers("decoder", "cross") == (1, 2, 3)
    assert without.attention_layers("decoder", "cross") == ()
    assert without.attention_layers("decoder") == (1, 2, 3)


@pytest.mark.parametrize("asked", [{}, {"attention_rows": "cls"}, {"layers": "1,-1"}, {"value_norms": True}])
def test_the_plan_knows_the_size(asked: dict[str, Any], tmp_path: Path) -> None:
    """Exactly, but for names and index tables: a few hundred bytes for each array."""
    model, probe = model_of("t5")
    recorder = Recorder(model, probe, tmp_path / "run", settings=CaptureSettings(**asked))
    with recorder:
        file = recorder.snapshot(0)
    import h5py

    with h5py.File(file) as stored:
        names: list[str] = []
        stored.visit(names.append)
        numbers = [
            n for n in names if isinstance(stored[n], h5py.Dataset) and n.startswith("main") and "index" not in n
        ]
        size = sum(stored[name].nbytes for name in numbers if "offsets" not in name)
    assert size <= recorder.plan.bytes_per_snapshot <= size * 1.1 + 1000
