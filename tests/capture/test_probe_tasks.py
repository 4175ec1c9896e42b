"""Tasks measured beside the main probe set: which vectors are kept, the encoder with random weights, and what is refused."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
)

from dynprobe.capture import random_encoder as random_encoder_module
from dynprobe.capture.callback import DynprobeCallback
from dynprobe.capture.frozen import weight_hashes
from dynprobe.capture.plan import make_plan
from dynprobe.capture.random_encoder import random_encoder
from dynprobe.capture.recorder import Recorder
from dynprobe.capture.settings import CaptureSettings
from dynprobe.errors import CaptureError, IncompatibleRunsError, RunFormatError, UsageError
from dynprobe.probe_set import ProbeSet
from dynprobe.probe_task import ProbeTask
from dynprobe.run import open_run
from dynprobe.storage.directory import read_manifest
from dynprobe.storage.layout import probe_path, snapshot_path
from dynprobe.storage.verify import verify_run

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


LIGHT = CaptureSettings(hidden="none", attention="none", weights=False)


def bert(seed: int = 0, kind: type[nn.Module] = BertForSequenceClassification) -> nn.Module:
    torch.manual_seed(seed)
    return kind(BertConfig(vocab_size=100, num_labels=3, max_position_embeddings=64, **SIZES))


def probe_set(n: int = 12, seed: int = 0, *, high: int = 100) -> ProbeSet:
    rng = np.random.default_rng(seed)
    ids = [rng.integers(5, high, size=rng.integers(3, 20)) for _ in range(n)]
    return ProbeSet.from_features([{"input_ids": row} for row in ids], labels=np.arange(n) % 3)


def task(n_train: int = 40, n_test: int = 9, **options: int) -> ProbeTask:
    return ProbeTask(probe_set(n_train, 1, **options), probe_set(n_test, 2, **options))


def record(*arguments: Any, **options: Any) -> Recorder:
    """A Recorder that keeps little else."""
    return Recorder(*arguments, **{"settings": LIGHT, **options})


def digest(model: nn.Module) -> str:
    return hashlib.sha256(b"".join(v.float().numpy().tobytes() for v in model.state_dict().values())).hexdigest()


def test_every_snapshot_keeps_what_measuring_the_task_alone_gives(tmp_path: Path) -> None:
    model, own = bert().train(), task()
    before = digest(model)
    with record(model, probe_set(), tmp_path / "run", probe_tasks={"own": own}) as recorder:
        for step in (0, 1):
            recorder.snapshot(step)
    assert digest(model) == before, "the frozen encoder has the weights that it had"
    assert model.training
    run = open_run(tmp_path / "run", verify=True)
    assert run.probe_tasks == ("own",)
    for split, probe in own.splits.items():
        assert run.probe_task("own", split).fingerprint == probe.fingerprint
        assert run.probe_task("own", split).label_fingerprint == probe.label_fingerprint
        with record(model, probe, tmp_path / split) as alone:
            alone.snapshot(0)
        expected = open_run(tmp_path / split)[0]
        for snapshot in run:
            assert snapshot.stacks == ("model",)
            assert snapshot.pooled_kinds(probe=f"own.{split}") == ("first", "mean")
            assert snapshot.pooled_layers("mean", probe=f"own.{split}") == (0, 1, 2)
            for kind in ("first", "mean"):
                for layer in (0, 1, 2):
                    found = snapshot.pooled(kind, layer, probe=f"own.{split}")
                    assert found.shape == (probe.n_examples, 32)
                    assert np.array_equal(found, expected.pooled(kind, layer))
    assert [problem for check in verify_run(run.path) for problem in check.problems] == []
    assert run.manifest["contents"]["probe_tasks"] == {"own": 49}


def test_the_random_encoder_is_made_of_the_configuration_alone_and_measured_once(tmp_path: Path) -> None:
    own, runs = task(), []
    for seed in (0, 1):
        with record(bert(seed), probe_set(), tmp_path / str(seed), probe_tasks={"own": own}) as recorder:
            state = torch.get_rng_state()
            recorder.snapshot(3)
            recorder.snapshot(8)
            assert torch.equal(torch.get_rng_state(), state)
        runs.append(open_run(tmp_path / str(seed)))
    made = random_encoder(bert())
    for run in runs:
        assert run.stacks == ("model",)
        assert run[3].pooled_kinds("random-model", probe="own.train") == ("first", "mean")
        assert run[8].pooled_kinds("random-model", probe="own.train") == ()
    one, other = (run.random_encoder("own", "train", "first", 2) for run in runs)
    assert np.array_equal(one, other), "whatever the trained weights are"
    assert not np.array_equal(one, runs[0][3].pooled("first", 2, probe="own.train"))
    assert np.array_equal(one, runs[0][3].pooled("first", 2, "random-model", probe="own.train"))
    with torch.no_grad():
        ids = torch.as_tensor(own.train.inputs["input_ids"][:1][own.train.real["model"][:1]])[None]
        states = made(input_ids=ids, output_hidden_states=True).hidden_states
    assert one[0].astype(float) == pytest.approx(states[2][0, 0].numpy(), rel=2**-10, abs=2**-10)


def test_the_random_encoder_is_frozen_and_the_same_each_time() -> None:
    model = bert()
    before, state, numbers = digest(model), torch.get_rng_state(), np.random.get_state()[1].copy()
    one, other = random_encoder(model), random_encoder(model.to(torch.bfloat16))
    assert digest(one.to(torch.bfloat16)) == digest(other) != before
    assert not one.training
    assert not any(parameter.requires_grad for parameter in one.parameters())
    assert other.dtype == torch.bfloat16, "as the model itself"
    assert one.config is not model.config
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numbers).all()
    head, block = one.classifier.weight.float(), one.bert.encoder.layer[0].output.dense.weight.float()
    assert (float(head.std()), float(block.std())) == pytest.approx((0.02, 0.02), rel=0.5), "as BERT begins"


@pytest.mark.parametrize("broken", ["large", "unmakable"])
def test_a_random_encoder_that_cannot_be_is_left_out_and_noted(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bert(kind=Unmakable) if broken == "unmakable" else bert()
    if broken == "large":
        monkeypatch.setattr(random_encoder_module, "LARGE_MODEL", 1000)
    with record(model, probe_set(), tmp_path / "run", probe_tasks={"own": task()}) as recorder:
        Unmakable.is_closed = True
        recorder.snapshot(0)
    Unmakable.is_closed = False
    run = open_run(tmp_path / "run")
    assert run.random_encoder("own", "train", "first", 0) is None
    assert run[0].pooled("first", 0, probe="own.test").shape == (9, 32)
    reason = "the model has" if broken == "large" else "Unmakable cannot be made anew, KeyError: 'no'"
    assert any(reason in note and "baseline" in note for note in run.notes)


class Unmakable(BertForSequenceClassification):
    is_closed = False

    def __init__(self, config: BertConfig) -> None:
        if self.is_closed:
            raise KeyError("no")
        super().__init__(config)


class Restless(BertForSequenceClassification):
    """A model whose forward pass changes a weight of its own, by the least that there is, once it is asked to."""

    restless = False

    def forward(self, *args: Any, **inputs: Any) -> Any:
        if self.restless:
            weight = self.bert.encoder.layer[0].output.dense.weight
            weight.view(torch.int32)[0, 0] ^= 1
        return super().forward(*args, **inputs)


def test_an_encoder_that_does_not_stay_frozen_is_found_out(tmp_path: Path) -> None:
    model = bert(kind=Restless)
    with record(model, probe_set(), tmp_path / "run", probe_tasks={"wic": task()}) as recorder:
        recorder.snapshot(0)
        model.restless = True
        with pytest.raises(
            CaptureError, match=r"must stay frozen.*encoder\.layer\.0\.output\.dense\.weight.*\(1 of \d+ param"
        ):
            recorder.snapshot(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.complex128, torch.bool])
@pytest.mark.parametrize("with_torchs", [True, False])
def test_the_hash_of_a_weight_moves_with_any_value(
    dtype: torch.dtype, with_torchs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_torchs:
        monkeypatch.delattr(torch, "hash_tensor", raising=False)
    module = nn.Module()
    module.register_parameter("w", nn.Parameter(torch.ones(7, 5).to(dtype).T, requires_grad=False))
    module.register_parameter("empty", nn.Parameter(torch.ones(0)))
    before = weight_hashes(module)
    assert before == weight_hashes(module)
    module.w.data[2, 3] = 0
    assert weight_hashes(module)["w"] != before["w"]


def test_a_run_goes_on_with_its_own_tasks_and_measures_no_random_encoder_again(tmp_path: Path) -> None:
    path, own = tmp_path / "run", {"own": task()}

    def go_on(tasks: dict[str, ProbeTask] | None) -> None:
        with record(bert(), probe_set(), path, probe_tasks=tasks, existing="resume") as recorder:
            recorder.snapshot(5)

    with record(bert(), probe_set(), path, probe_tasks=own) as recorder:
        recorder.snapshot(0)
    for tasks in (None, {}, {"other": task()}, {**own, "other": task()}, {"own": task(41)}):
        with pytest.raises(IncompatibleRunsError, match=r"probe_tasks .* instead of \{'own': 49\}"):
            go_on(tasks)
    changed = replace(own["own"].test, labels=(own["own"].test.labels + 1) % 3)
    with pytest.raises(IncompatibleRunsError, match=r"other examples or labels of 'own\.test'"):
        go_on({"own": ProbeTask(own["own"].train, changed)})
    assert sorted(file.name for file in (path / "probes").iterdir()) == ["main.h5", "own.test.h5", "own.train.h5"]
    go_on(own)
    run = open_run(path)
    assert run[5].pooled_kinds("model", probe="own.test") == ("first", "mean")
    assert run[5].pooled_kinds("random-model", probe="own.test") == ()
    assert run.random_encoder("own", "test", "mean", 1).shape == (9, 32)
    with record(bert(), probe_set(), path, existing="replace") as recorder:
        recorder.snapshot(0)
    assert open_run(path).probe_tasks == ()


def test_a_run_without_snapshots_keeps_its_tasks_too(tmp_path: Path) -> None:
    with record(bert(), probe_set(), tmp_path / "run", probe_tasks={"own": task()}):
        pass
    with (
        pytest.raises(IncompatibleRunsError, match=r"must go on with its own probe tasks, \['own'\]; got \['x'\]"),
        record(bert(), probe_set(), tmp_path / "run", probe_tasks={"x": task()}, existing="resume"),
    ):
        pass


def test_a_run_from_before_there_were_probe_tasks_goes_on(tmp_path: Path) -> None:
    from dynprobe.storage.directory import write_manifest

    with record(bert(), probe_set(), tmp_path / "run") as recorder:
        recorder.snapshot(0)
    manifest = read_manifest(tmp_path / "run")
    del manifest["contents"]["probe_tasks"]
    write_manifest(tmp_path / "run", manifest)
    with record(bert(), probe_set(), tmp_path / "run", existing="resume") as recorder:
        recorder.snapshot(1)
    run = open_run(tmp_path / "run")
    assert run.probe_tasks == ()
    assert "task_fingerprints" not in run[1].meta
    with pytest.raises(
        UsageError, match=r"must be asked for train or test of its probe tasks \[\]; got 'own', 'train'"
    ):
        run.probe_task("own", "train")
    with pytest.raises(RunFormatError, match=r"`own\.train/model/pooled/first/0` must have been captured"):
        run[0].pooled("first", 0, probe="own.train")


def test_unknown_tasks_splits_and_layers(tmp_path: Path) -> None:
    with record(bert(), probe_set(), tmp_path / "run", probe_tasks={"own": task()}) as recorder:
        recorder.snapshot(0)
    run = open_run(tmp_path / "run")
    for name, split in (("own", "validation"), ("../main", "train"), ("own.train", "test")):
        with pytest.raises(UsageError, match="must be asked for train or test"):
            run.probe_task(name, split)
        with pytest.raises(UsageError, match="must be asked for train or test"):
            run.random_encoder(name, split, "first", 0)
    with pytest.raises(RunFormatError, match="must have been captured"):
        run.random_encoder("own", "train", "first", 7)
    assert run.random_encoder("own", "train", "first", 0, stack="encoder") is None


@pytest.mark.parametrize(
    ("tasks", "error", "said"),
    [
        ({"a/b": task()}, UsageError, "must be named by letters, digits, `_` and `-`, at most 58 of them.*got 'a/b'"),
        ({"a.b": task()}, UsageError, "got 'a.b'"),
        ({"": task()}, UsageError, "got ''"),
        ({"x" * 59: task()}, UsageError, "at most 58"),
        (
            {"own": probe_set()},
            UsageError,
            "must be a ProbeTask; got ProbeSet. Make one with dynprobe.tasks.probe_task",
        ),
        ({"own": task(high=200)}, CaptureError, "must be tokens of the model, 0 to 99; got 199"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_written(
    tasks: dict[str, Any], error: type[Exception], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        record(bert(), probe_set(), tmp_path / "run", probe_tasks=tasks)
    assert not (tmp_path / "run").exists()


def test_a_probe_task_has_classes() -> None:
    good = probe_set(9)
    for labels, said in [
        (None, "`train` of a probe task must have labels; got none"),
        (np.arange(9) / 2, "must be one class index per example; got float64"),
        (np.zeros((9, 2), dtype=int), r"got int64 of shape \(9, 2\)"),
        (np.arange(9) - 1, "must be indices of its classes, 0 to 7; got -1 to 7"),
        (np.zeros(9, dtype=int), "`train` of a probe task must hold at least two classes; got 1"),
    ]:
        with pytest.raises(UsageError, match=said):
            ProbeTask(replace(good, labels=labels), good)
    with pytest.raises(UsageError, match="`test` of a probe task must have labels"):
        ProbeTask(good, replace(good, labels=None))
    with pytest.raises(UsageError, match="must be indices of its classes, 0 to 1; got 0 to 2"):
        ProbeTask(good, replace(good, label_names=("a", "b")))
    with pytest.raises(UsageError, match="must have the same classes"):
        ProbeTask(good, replace(good, label_names=("a", "b", "c")))
    ProbeTask(good, replace(good, labels=np.zeros(9, dtype=int)))  # of one class is scored what can be


def test_budget_and_rehearsal_count_them(tmp_path: Path) -> None:
    own, model = task(400, 100), bert()
    with record(model, probe_set(), tmp_path / "run", max_steps=2, probe_tasks={"own": own}) as recorder:
        said = recorder.rehearse()
        sizes = [recorder.snapshot(step).stat().st_size for step in (0, 1)]
    plain = record(model, probe_set(), tmp_path / "plain", max_steps=2).plan
    of_task = 500 * 32 * 3 * 2 * 2
    assert recorder.plan.bytes_per_snapshot - plain.bytes_per_snapshot == recorder.plan.bytes_once == of_task
    assert plain.bytes_once == 0
    for size, expected in zip(sizes, (said.bytes_per_snapshot + said.bytes_once, said.bytes_per_snapshot), strict=True):
        assert expected <= size <= expected + 64 * 1024
    assert said.total == recorder.plan.total == 3 * said.bytes_per_snapshot + of_task
    assert "probe tasks: own (500 examples)" in str(said).splitlines()
    settings = CaptureSettings(budget=plain.bytes_per_snapshot * 3 + of_task)
    small = record(model, probe_set(), tmp_path / "small", settings=settings, max_steps=2, probe_tasks={"own": own})
    assert "The budget" in small.notes[0], "what is asked for leaves less for the rest"
    fewer = make_plan(small._architecture, small.probe_set, settings, max_steps=2)
    assert fewer.notes == ()


def test_what_does_not_fit_float16_is_kept_in_float32(tmp_path: Path) -> None:
    model = bert()
    with torch.no_grad():
        model.bert.encoder.layer[1].output.LayerNorm.weight.fill_(1e6)
    with record(model, probe_set(), tmp_path / "run", probe_tasks={"own": task()}) as recorder:
        recorder.snapshot(0)
    run = open_run(tmp_path / "run")
    assert [run[0].pooled("mean", layer, probe="own.train").dtype.name for layer in (1, 2)] == ["float16", "float32"]
    assert run.random_encoder("own", "train", "mean", 2).dtype == np.float16


def test_a_model_that_diverged_is_named_with_the_task(tmp_path: Path) -> None:
    model = bert()
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[99] = float("nan")  # a token that only the task has
    main, own = probe_set(high=99), task()
    assert any((own.train.inputs["input_ids"] == 99).any(axis=1))
    with record(model, main, tmp_path / "run", probe_tasks={"own": own}) as recorder:
        with pytest.raises(
            CaptureError, match=r"got NaN in the pooled \w+ of layer 0 \(stack 'model', probe task 'own"
        ):
            recorder.snapshot(0)
        assert not snapshot_path(tmp_path / "run", 0).exists()


def test_decoders_and_encoder_decoders(tmp_path: Path) -> None:
    torch.manual_seed(0)
    llama = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=100, num_key_value_heads=4, max_position_embeddings=64, num_labels=3, pad_token_id=0, **SIZES
        )
    )
    with record(llama, probe_set(), tmp_path / "llama", probe_tasks={"own": task()}) as recorder:
        recorder.snapshot(0)
    run = open_run(tmp_path / "llama")
    assert run[0].pooled_kinds(probe="own.test") == ("last", "mean")
    assert run.random_encoder("own", "test", "last", 1).shape == (9, 32)
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=100, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0)
    )
    rows = [{"input_ids": np.arange(5, 9 + i), "decoder_input_ids": np.array([0, 5 + i])} for i in range(6)]
    both = ProbeSet.from_features(rows, labels=np.arange(6) % 2)
    with record(t5, both, tmp_path / "t5", probe_tasks={"own": ProbeTask(both, both)}) as recorder:
        recorder.snapshot(0)
    run = open_run(tmp_path / "t5")
    assert run.stacks == ("encoder", "decoder")
    assert run.random_encoder("own", "train", "mean", 2, stack="decoder").shape == (6, 16)
    # A text of the main probe set and of the task is the same text.
    assert np.array_equal(run[0].pooled("last", 2, "decoder", probe="own.train"), run[0].pooled("last", 2, "decoder"))
    with pytest.raises(CaptureError, match="must hold the tokens of encoder and decoder"):
        record(t5, both, tmp_path / "other", probe_tasks={"own": task()})


def test_the_callback_takes_them(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    callback = DynprobeCallback(tmp_path / "run", probe_tasks={"own": task()}, settings=LIGHT)
    make_trainer(callbacks=[callback], max_steps=1).train()
    run = open_run(tmp_path / "run")
    assert [snapshot.pooled("first", 2, probe="own.test").shape for snapshot in run] == [(9, 32)] * 2
    assert run.random_encoder("own", "train", "first", 1).shape == (40, 32)


def test_a_file_that_was_changed_is_found(tmp_path: Path) -> None:
    with record(bert(), probe_set(), tmp_path / "run", probe_tasks={"own": task()}) as recorder:
        recorder.snapshot(0)
    path = tmp_path / "run"
    (path / "ledger.jsonl").unlink()  # which would find the same, in other words
    probe_path(path, "own.test").rename(probe_path(path, "own.train"))
    problems = {check.path.name: " ".join(check.problems) for check in verify_run(path)}
    for part in ("own.train", "own.test"):
        assert (
            f"was measured on examples of the probe task '{part}' that are not in this run"
            in problems["step-00000000.h5"]
        )
    assert open_run(path).probe_tasks == (), "half of a task is none"
    probe_path(path, "own.test").write_bytes(probe_path(path, "own.train").read_bytes())
    with pytest.raises(RunFormatError, match=r"one vector for each of the 9 examples of own\.train\.h5; got 40"):
        open_run(path)[0].pooled("first", 0, probe="own.train")
