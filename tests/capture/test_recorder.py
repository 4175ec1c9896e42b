"""What a snapshot holds, and what a Recorder refuses."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForQuestionAnswering, BertForTokenClassification, BertModel

from dynprobe.analysis import attention_js, pairs_between
from dynprobe.capture.recorder import Recorder
from dynprobe.capture.settings import CaptureSettings
from dynprobe.capture.snapshot_writer import pool
from dynprobe.errors import CaptureError, IncompatibleRunsError, UsageError
from dynprobe.probe_set import ProbeSet
from dynprobe.run import open_run
from dynprobe.storage.directory import read_manifest, write_manifest
from dynprobe.storage.verify import verify_run

CONFIG = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


def probe_set(n: int = 20, seed: int = 0) -> ProbeSet:
    rng = np.random.default_rng(seed)
    return ProbeSet.from_features([{"input_ids": rng.integers(5, 100, size=rng.integers(3, 20))} for _ in range(n)])


def bert(kind: Callable[[BertConfig], nn.Module] = BertModel, **changes: object) -> nn.Module:
    torch.manual_seed(0)
    return kind(BertConfig(**{**CONFIG, **changes})).eval()


def test_a_run_says_what_it_holds(tmp_path: Path) -> None:
    probe = probe_set()
    with Recorder(bert(), probe, tmp_path / "run", facts={"seed": 5}) as recorder:
        path = recorder.snapshot(0)
        assert recorder.snapshot(0) == path, "taking a step again changes nothing"
        recorder.log({"step": 0, "loss": 2.0})
    run = open_run(tmp_path / "run")
    assert run.manifest["model"]["model_class"] == "BertModel"
    assert run.manifest["training"] == {"seed": 5}
    assert run.manifest["attention_implementation"] == "sdpa"
    assert run.scalars == [{"step": 0, "loss": 2.0}]
    assert run.probe_set.fingerprint == probe.fingerprint
    assert run[0].outputs() is None, "a model without a head says nothing"


def test_planned_size_is_the_size_of_the_file(tmp_path: Path) -> None:
    probe = probe_set(60)
    with Recorder(bert(), probe, tmp_path / "run") as recorder:
        size = recorder.snapshot(0).stat().st_size
    assert recorder.plan.bytes_per_snapshot <= size <= recorder.plan.bytes_per_snapshot + 64 * 1024


@pytest.mark.parametrize("side", ["first", "last", "mean"])
def test_pooling_knows_where_the_padding_is(side: str) -> None:
    hidden = torch.arange(24.0).reshape(2, 4, 3)
    real = torch.tensor([[False, True, True, False], [True, True, True, True]])
    expected = {"first": [hidden[0, 1], hidden[1, 0]], "last": [hidden[0, 2], hidden[1, 3]]}
    expected["mean"] = [hidden[0, 1:3].mean(0), hidden[1].mean(0)]
    assert torch.equal(pool(hidden, real, side), torch.stack(expected[side]))


def test_values_beyond_float16_are_kept_in_float32_for_that_layer_alone(tmp_path: Path) -> None:
    model = bert()
    with torch.no_grad():
        model.encoder.layer[1].output.LayerNorm.weight.fill_(1e6)
    with Recorder(model, probe_set(), tmp_path / "run") as recorder:
        recorder.snapshot(0)
        recorder.snapshot(1)
    for snapshot in open_run(tmp_path / "run"):
        assert snapshot.hidden_states(2).dtype == np.float32
        assert snapshot.hidden_states(1).dtype == np.float16
        assert np.abs(snapshot.hidden_states(2)).max() > 1e5
        assert snapshot.resolution("hidden_states", 2) < snapshot.resolution("hidden_states", 1)


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "Inf|NaN")])
def test_activations_that_are_no_numbers_name_layer_and_step(value: float, word: str, tmp_path: Path) -> None:
    model = bert()
    with torch.no_grad():
        model.encoder.layer[1].output.LayerNorm.bias[3] = value
    settings = CaptureSettings(attention="none")
    with (
        Recorder(model, probe_set(), tmp_path / "run", settings=settings) as recorder,
        pytest.raises(CaptureError, match=f"step 7: activations must be finite; got ({word}) .* layer 2"),
    ):
        recorder.snapshot(7)
    assert open_run(tmp_path / "run").steps == ()
    assert list((tmp_path / "run" / "snapshots").iterdir()) == [], "no half-written file is left"


def test_what_is_not_asked_for_is_not_stored(tmp_path: Path) -> None:
    settings = CaptureSettings(hidden="none", attention=3, weights=False)
    with Recorder(bert(), probe_set(), tmp_path / "run", settings=settings) as recorder:
        recorder.snapshot(0)
    snapshot = open_run(tmp_path / "run")[0]
    assert snapshot.layers() == ()
    assert list(snapshot.attention_examples()) == [0, 1, 2]
    assert snapshot.parameter_changes() == {}
    assert snapshot.pooled("first", 0).shape == (20, 32)


def test_distances_of_the_weights(tmp_path: Path) -> None:
    model = bert()
    with Recorder(model, probe_set(), tmp_path / "run") as recorder:
        recorder.snapshot(0)
        with torch.no_grad():
            model.pooler.dense.bias += 2.0
        recorder.snapshot(1)
    changes = open_run(tmp_path / "run")[1].parameter_changes()
    assert changes["pooler.dense.bias"][0] == pytest.approx(2.0 * 32**0.5)
    assert changes["embeddings.word_embeddings.weight"][0] == 0


@pytest.mark.parametrize("kind", [BertForMaskedLM, BertForTokenClassification, BertForQuestionAnswering])
def test_what_a_head_says_about_each_token(kind: Callable[[BertConfig], nn.Module], tmp_path: Path) -> None:
    model, probe = bert(kind, num_labels=5 if kind is BertForTokenClassification else 2), probe_set()
    with Recorder(model, probe, tmp_path / "run") as recorder:
        recorder.snapshot(0)
    said = open_run(tmp_path / "run")[0].outputs()
    assert said is not None
    real = probe.real["model"]
    inputs = {name: torch.as_tensor(np.array(value)) for name, value in probe.inputs.items()}
    with torch.no_grad():
        output = model.eval()(**inputs)
    if kind is BertForQuestionAnswering:
        expected = torch.stack([output.start_logits, output.end_logits], dim=-1).numpy()[real]
    elif kind is BertForTokenClassification:
        expected = output.logits.numpy()[real]
    else:
        log_p = output.logits.log_softmax(-1)
        expected = -log_p.gather(-1, inputs["input_ids"][..., None])[..., 0].numpy()[real]
    assert said.kind == ("nll" if kind is BertForMaskedLM else "token_logits")
    np.testing.assert_allclose(said.values, expected, atol=1e-5)
    assert said.offsets is not None
    assert list(np.diff(said.offsets)) == list(real.sum(axis=1))


def test_an_existing_run_is_not_touched_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with Recorder(bert(), probe_set(), path) as recorder:
        recorder.snapshot(0)
    with pytest.raises(UsageError, match="must be new; got one with 1 snapshot"):
        Recorder(bert(), probe_set(), path).__enter__()
    with Recorder(bert(), probe_set(), path, existing="resume") as recorder:
        recorder.snapshot(4)
    assert open_run(path).steps == (0, 4)
    with pytest.raises(IncompatibleRunsError, match="must go on with its own probe set, fingerprint"):
        Recorder(bert(), probe_set(seed=1), path, existing="resume").__enter__()
    with Recorder(bert(), probe_set(seed=1), path, existing="replace") as recorder:
        recorder.snapshot(1)
    assert open_run(path).steps == (1,)
    with pytest.raises(UsageError, match="`existing` must be one of"):
        Recorder(bert(), probe_set(), path, existing="whatever")


def test_a_recorder_must_be_entered_and_steps_must_count(tmp_path: Path) -> None:
    recorder = Recorder(bert(), probe_set(), tmp_path / "run")
    with pytest.raises(UsageError, match="must be called between __enter__ and __exit__"):
        recorder.snapshot(0)
    with recorder, pytest.raises(UsageError, match="0 or more; got -1"):
        recorder.snapshot(-1)


def test_inputs_that_the_model_does_not_take_are_named(tmp_path: Path) -> None:
    probe = ProbeSet(
        inputs={"pixels": np.zeros((2, 3))}, real={"model": np.ones((2, 3), bool)}, special={"model": np.zeros((2, 3), bool)}
    )  # fmt: skip
    with (
        Recorder(bert(), probe, tmp_path / "run") as recorder,
        pytest.raises(CaptureError, match=r"must fit the model's forward; got inputs \['pixels'\]"),
    ):
        recorder.snapshot(0)


def test_all_arrays_that_overflow_cost_one_more_pass(tmp_path: Path) -> None:
    model, passes = bert(num_hidden_layers=4), []
    model.embeddings.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        for layer in model.encoder.layer:
            layer.output.LayerNorm.weight.fill_(1e6)
    with Recorder(model, probe_set(), tmp_path / "run") as recorder:
        recorder.snapshot(0)
        assert len(passes) == 2 + 2, "two looks at how the model is built, then one pass more than usual"
        recorder.snapshot(1)
        assert len(passes) == 2 + 2 + 1, "the run remembers"
    one = open_run(tmp_path / "run")[1]
    assert [one.hidden_states(layer).dtype for layer in one.layers()] == [np.float16, *[np.float32] * 4]
    assert [one.pooled("mean", layer).dtype for layer in one.layers()][1] == np.float32
    assert one.attentions(1)[0].dtype == np.float16


def attention_in_full(model: nn.Module, probe: ProbeSet, layer: int) -> list[np.ndarray]:
    """Attention of each example by itself, as the model gives it."""
    model.set_attn_implementation("eager")
    ids = [torch.as_tensor(row[real]) for row, real in zip(probe.inputs["input_ids"], probe.real["model"], strict=True)]
    with torch.no_grad():
        return [model(row[None], output_attentions=True).attentions[layer - 1][0].numpy() for row in ids]


def test_float32_shows_attention_that_moved_less_than_float16_resolves(tmp_path: Path) -> None:
    probe, models = probe_set(), [bert().double(), bert().double()]
    with torch.no_grad():
        models[1].encoder.layer[0].attention.self.query.weight.mul_(1.01)
    for dtype in ("float16", "float32"):
        asked = CaptureSettings(attention_dtype=dtype)
        for model, name in zip(models, ("a", "b"), strict=True):
            with Recorder(model, probe, tmp_path / dtype / name, settings=asked) as recorder:
                size = recorder.snapshot(0).stat().st_size
            assert recorder.plan.bytes_per_snapshot <= size <= recorder.plan.bytes_per_snapshot + 64 * 1024
            assert all(not check.problems for check in verify_run(tmp_path / dtype / name))
    rows = {}
    for dtype in ("float16", "float32"):
        runs = [open_run(tmp_path / dtype / name) for name in ("a", "b")]
        assert runs[0][0].attentions(1).dtype == runs[0][0].attentions(1)[0].dtype == np.dtype(dtype)
        assert runs[0][0].hidden_states(1).dtype == np.float16, "nothing else changes"
        rows[dtype] = attention_js(pairs_between(*runs), specials=True).select(layer=1).iloc[0]
        assert rows[dtype]["resolution"] == np.finfo(dtype).eps
    assert (rows["float16"]["status"], rows["float32"]["status"]) == ("below-resolution", "measured")
    p, q = (attention_in_full(model, probe, 1) for model in models)
    divergences = [jensenshannon(x, y, axis=-1) ** 2 for x, y in zip(p, q, strict=True)]
    exact = np.mean([divergence.mean() for divergence in divergences])
    # JS is r²/8 for a relative difference r; each of two stored numbers is off by 2^-24 and its row sum by as much again.
    assert rows["float32"]["value"] == pytest.approx(exact, rel=2 * 4 * 2.0**-24 / np.sqrt(8 * exact))


def test_a_run_from_before_there_was_a_choice_goes_on_in_float16(tmp_path: Path) -> None:
    with Recorder(bert(), probe_set(), tmp_path / "run") as recorder:
        recorder.snapshot(0)
    manifest = read_manifest(tmp_path / "run")
    assert manifest["contents"].pop("attention_dtype") == "float16"
    write_manifest(tmp_path / "run", manifest)
    wide = CaptureSettings(attention_dtype="float32")
    with pytest.raises(
        IncompatibleRunsError, match=r"must go on with the same .* got attention_dtype float32 instead of float16"
    ):
        Recorder(bert(), probe_set(), tmp_path / "run", settings=wide, existing="resume").__enter__()
    with Recorder(bert(), probe_set(), tmp_path / "run", existing="resume") as recorder:
        recorder.snapshot(5)


def test_pooled_vectors_are_of_all_examples_however_small_the_budget(tmp_path: Path) -> None:
    """Isotropy depends on the number of vectors; two runs on one probe set must have the same."""
    probe, counts = probe_set(40), []
    for name, budget in (("large", 10**9), ("small", 1)):
        with Recorder(bert(), probe, tmp_path / name, settings=CaptureSettings(budget=budget)) as recorder:
            recorder.snapshot(0)
        snapshot = open_run(tmp_path / name)[0]
        counts.append((len(snapshot.pooled("first", 1)), len(snapshot.attention_examples())))
    assert counts == [(40, 40), (40, 4)]


def test_pooled_vectors_are_those_of_the_real_tokens_whatever_the_padding(tmp_path: Path) -> None:
    class Left:
        pad_token_id, padding_side, all_special_ids = 0, "left", ()

    rows = [{"input_ids": np.arange(5, 8 + i)} for i in range(5)]
    model, found = bert(position_embedding_type="absolute"), {}
    with torch.no_grad():
        model.embeddings.position_embeddings.weight.zero_()  # so that a token says the same at every position
    for side, tokenizer in (("left", Left()), ("right", None)):
        probe = ProbeSet.from_features(rows, tokenizer=tokenizer)
        assert probe.real["model"][:, 0].all() == (side == "right")
        with Recorder(model, probe, tmp_path / side) as recorder:
            recorder.snapshot(0)
        snapshot = open_run(tmp_path / side)[0]
        order = np.argsort(probe.real["model"].sum(axis=1))
        found[side] = [snapshot.pooled(kind, 2)[order].astype(np.float64) for kind in ("first", "mean")]
    # Values of a LayerNorm are about 1; float16 keeps 11 bits of each, and padding changes the order of float32 sums.
    np.testing.assert_allclose(found["left"], found["right"], atol=2 * 4 * 2.0**-11)


def test_a_run_goes_on_only_with_the_same_amounts(tmp_path: Path) -> None:
    with Recorder(bert(), probe_set(), tmp_path / "run") as recorder:
        recorder.snapshot(0)
    fewer = CaptureSettings(hidden=10)
    for model, settings in ((bert(), fewer), (bert(num_hidden_layers=3), None), (bert(hidden_size=64), None)):
        with pytest.raises(
            IncompatibleRunsError,
            match=r"must go on with the same model and amounts; got model \{.*'tokens': .* instead of",
        ):
            Recorder(model, probe_set(), tmp_path / "run", settings=settings, existing="resume").__enter__()
    with Recorder(bert(), probe_set(), tmp_path / "run", existing="resume") as recorder:
        recorder.snapshot(5)
    assert open_run(tmp_path / "run").steps == (0, 5)


def test_distances_after_starting_again_from_step_0(tmp_path: Path) -> None:
    """Step 0 is on disk already, but the weights it had must be seen again."""
    model = bert()
    with Recorder(model, probe_set(), tmp_path / "run") as recorder:
        recorder.snapshot(0)
    with Recorder(model, probe_set(), tmp_path / "run", existing="resume") as recorder:
        recorder.snapshot(0)
        with torch.no_grad():
            model.pooler.dense.bias += 1.0
        recorder.snapshot(1)
    assert open_run(tmp_path / "run")[1].parameter_changes()["pooler.dense.bias"][0] == pytest.approx(32**0.5)
    assert open_run(tmp_path / "run").notes == ()


def test_too_small_a_disk_is_said_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dynprobe.capture import recorder as module

    monkeypatch.setattr(module, "free_bytes", lambda path: 1000)
    with pytest.raises(CaptureError, match=r"the disk must have .* free for 9 snapshot\(s\); got 1 kB"):
        Recorder(bert(), probe_set(), tmp_path / "run", max_steps=1000).__enter__()


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with Recorder(bert(), probe_set(), tmp_path / "run") as recorder:
        recorder.snapshot(0)
        with pytest.raises(UsageError, match="must have one writer"):
            Recorder(bert(), probe_set(), tmp_path / "run", existing="resume").__enter__()
        recorder.snapshot(1)
    assert open_run(tmp_path / "run").steps == (0, 1)


def test_notes_are_kept_once(tmp_path: Path) -> None:
    with Recorder(bert(), probe_set(), tmp_path / "run", settings=CaptureSettings(weights=False)) as recorder:
        recorder.note("Something to know.")
        recorder.note("Something to know.")
    assert open_run(tmp_path / "run").notes == (
        "Distances of the weights from step 0 were not recorded.",
        "Something to know.",
    )


def test_who_asks_is_told_of_each_snapshot(tmp_path: Path) -> None:
    told: list[tuple[int, Path]] = []
    with Recorder(bert(), probe_set(), tmp_path / "run", on_snapshot=lambda *news: told.append(news)) as recorder:
        paths = [recorder.snapshot(step) for step in (0, 3, 3)]
    assert told == [(0, paths[0]), (3, paths[1])], "not again for what was there"
    assert recorder.seconds > 0


def test_a_model_in_low_precision(tmp_path: Path) -> None:
    model = bert().to(torch.bfloat16)
    with Recorder(model, probe_set(), tmp_path / "run") as recorder:
        recorder.snapshot(0)
    run = open_run(tmp_path / "run")
    assert run.manifest["dtype"] == "bfloat16"
    for block in run[0].attentions(1):
        # Rows of bfloat16 numbers, each with a relative error of at most 2^-9.
        np.testing.assert_allclose(block.sum(-1, dtype=np.float32), 1.0, atol=2.0**-8)
    assert next(model.parameters()).dtype == torch.bfloat16
