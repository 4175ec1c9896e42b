"""Replay: a capture from saved checkpoints must be the capture that would have been taken live."""

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

from dynprobe.capture import models
from dynprobe.capture import replay as replaying
from dynprobe.capture.callback import DynprobeCallback
from dynprobe.capture.checkpoints import find_checkpoints, read_trainer_log
from dynprobe.capture.replay import replay
from dynprobe.capture.settings import CaptureSettings
from dynprobe.errors import CaptureError, IncompatibleRunsError, RunFormatError, UsageError
from dynprobe.run import open_run
from dynprobe.storage.layout import snapshot_path
from dynprobe.storage.reader import FileReader
from tests.conftest import tiny_classifier, tiny_probe_set

pytestmark = pytest.mark.slow

Make = Callable[..., tf.Trainer]
SAVING = {"save_strategy": "steps", "save_steps": 4}


def arrays(run: Path, step: int) -> dict[str, np.ndarray]:
    with FileReader(snapshot_path(run, step)) as file:
        return {name: file.read(name) for name in file.names}


def assert_same_bits(run: Path, other: Path, step: int, *, without: str = "none") -> None:
    a, b = ({k: v for k, v in arrays(r, step).items() if not k.startswith(without)} for r in (run, other))
    assert a.keys() == b.keys()
    assert len(a) > 5
    for name in a:
        assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape)
        assert a[name].tobytes() == b[name].tobytes(), (step, name)


@pytest.fixture
def training(make_trainer: Make, tmp_path: Path) -> Path:
    """A folder with the model before training, the live run of a training, and its checkpoints of steps 4, 8, 12."""
    live = DynprobeCallback(tmp_path / "live", settings=CaptureSettings(schedule="every:4"))
    trainer = make_trainer(callbacks=[live], **SAVING)
    trainer.model.save_pretrained(tmp_path / "start")
    trainer.train()
    return tmp_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Untrained checkpoints of steps 3 and 20, with what a Trainer writes beside them; none of it can be unpickled."""
    for step, seed in ((20, 1), (3, 0)):
        path = tmp_path / "output" / f"checkpoint-{step}"
        tiny_classifier(seed).save_pretrained(path)
        for name in ("training_args.bin", "optimizer.pt", "rng_state.pth", "scheduler.pt"):
            (path / name).write_bytes(b"not to be read")
        history = [{"step": n, "epoch": n / 20, "loss": 1 / n} for n in range(1, step + 1)]
        state = {"global_step": step, "max_steps": 40, "log_history": history}
        (path / "trainer_state.json").write_text(json.dumps(state))
    (tmp_path / "output" / "checkpoint-x").mkdir()
    (tmp_path / "output" / "checkpoint-7").write_text("a file")
    return tmp_path / "output"


def test_a_replay_has_the_bits_of_the_live_capture(training: Path) -> None:
    live = open_run(training / "live")
    state = torch.get_rng_state()
    path = replay(training / "checkpoints", training / "after", probe_set=live.probe_set, base=str(training / "start"))
    assert torch.equal(torch.get_rng_state(), state)
    after = open_run(path)
    assert after.steps == live.steps == (0, 4, 8, 12)
    for step in after.steps:
        assert_same_bits(training / "live", path, step)
    assert "parameters/distance" in arrays(path, 12)
    shutil.copy(snapshot_path(path, 8), snapshot_path(path, 4))
    with pytest.raises(RunFormatError, match="must be the file that was written"):
        assert_same_bits(training / "live", path, 4)
    assert not np.array_equal(live[4].hidden_states(2), live[8].hidden_states(2)), "bits that could differ"
    assert after.max_steps == live.max_steps == 12
    assert list(after.scalars) == list(live.scalars)[: len(after.scalars)]
    assert [record["step"] for record in after.scalars] == [4, 8, 12]
    assert after.manifest["training"] == {
        "origin": "replay",
        "checkpoints": ["checkpoint-4", "checkpoint-8", "checkpoint-12"],
        "base": str(training / "start"),
    }


def test_without_a_base_the_run_starts_at_its_first_checkpoint(training: Path) -> None:
    live = open_run(training / "live")
    path = replay(training / "checkpoints", training / "after", probe_set=live.probe_set, steps=[12, 8])
    assert open_run(path).steps == (8, 12)
    assert any("did not see step 0" in note for note in open_run(path).notes)
    for step in (8, 12):
        assert_same_bits(training / "live", path, step, without="parameters")


def test_a_base_without_the_head_says_nothing_at_step_0(training: Path) -> None:
    tf.BertForSequenceClassification.from_pretrained(training / "start").bert.save_pretrained(training / "bare")
    live = open_run(training / "live")
    path = replay(training / "checkpoints", training / "after", probe_set=live.probe_set, base=str(training / "bare"))
    after = open_run(path)
    assert after[0].outputs() is None
    assert after[4].outputs() is not None
    assert (after[0].hidden_states(2) == live[0].hidden_states(2)).all()
    distances, before = after[12].parameter_changes(), live[12].parameter_changes()
    assert set(before) - set(distances) == {"classifier.weight", "classifier.bias"}
    assert all(distances[name] == before[name] for name in distances)
    assert any("classifier.bias, classifier.weight, which were random" in note for note in after.notes)


def test_an_interrupted_replay_goes_on(training: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe, base = open_run(training / "live").probe_set, str(training / "start")
    load = models.load_weights

    def interrupted(name: str, **options: Any) -> models.Loaded:
        if name.endswith("checkpoint-8"):
            raise KeyboardInterrupt
        return load(name, **options)

    monkeypatch.setattr(replaying, "load_weights", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replay(training / "checkpoints", training / "after", probe_set=probe, base=base)
    monkeypatch.undo()
    assert open_run(training / "after").steps == (0, 4)
    with pytest.raises(UsageError, match=r"got one with 2 snapshot\(s\).*--resume to go on with it, or --force"):
        replay(training / "checkpoints", training / "after", probe_set=probe, base=base)
    for _ in range(2):
        replay(training / "checkpoints", training / "after", probe_set=probe, base=base, existing="resume")
    for step in (0, 4, 8, 12):
        assert_same_bits(training / "live", training / "after", step)
    assert [record["step"] for record in open_run(training / "after").scalars] == [4, 8, 12]
    with pytest.raises(UsageError, match="must go on with a run made by replay; got a live capture"):
        replay(training / "checkpoints", training / "live", probe_set=probe, existing="resume")


def test_nothing_is_done_when_no_step_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = folder.parent / "run"
    replay(folder, run, probe_set=tiny_probe_set(), steps=[3])
    assert open_run(run).manifest["training"]["checkpoints"] == ["checkpoint-3"]
    replay(folder, run, probe_set=tiny_probe_set(), existing="resume")
    assert open_run(run).steps == (3, 20)
    assert open_run(run).manifest["training"]["checkpoints"] == ["checkpoint-3", "checkpoint-20"]
    assert len(open_run(run).scalars) == 20
    monkeypatch.setattr(replaying, "load_weights", None)
    replay(folder, run, probe_set=tiny_probe_set(), existing="resume")
    monkeypatch.undo()
    replay(folder, run, probe_set=tiny_probe_set(seed=1), steps=[20], existing="replace")
    assert open_run(run).steps == (20,)
    assert len(open_run(run).scalars) == 20


def test_one_model_is_in_memory_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder / "checkpoint-3", folder / "checkpoint-5")
    seen: list[weakref.ref[torch.nn.Module]] = []
    alive: list[int] = []
    load = models.load_weights

    def counting(name: str, **options: Any) -> models.Loaded:
        alive.append(sum(reference() is not None for reference in seen))
        loaded = load(name, **options)
        seen.append(weakref.ref(loaded.model))
        return loaded

    monkeypatch.setattr(replaying, "load_weights", counting)
    replay(folder, folder.parent / "run", probe_set=tiny_probe_set())
    assert alive == [0, 0, 0]


def test_progress_and_one_checkpoint_alone(folder: Path) -> None:
    told: list[tuple[int, int, str]] = []
    path = replay(
        folder / "checkpoint-20", folder.parent / "run", probe_set=tiny_probe_set(), progress=lambda *a: told.append(a)
    )
    assert open_run(path).steps == (20,)
    assert told == [(0, 1, "step 20"), (1, 1, "done")]
    (folder / "checkpoint-20").rename(folder / "final")
    assert [c.step for c in find_checkpoints(folder / "final")] == [20], "as its trainer_state.json says"


def test_a_checkpoint_that_cannot_be_read_is_named_and_those_before_are_kept(folder: Path) -> None:
    file, run = folder / "checkpoint-20" / "model.safetensors", folder.parent / "run"
    whole = file.read_bytes()
    for content in (whole[:-50], b""):
        file.write_bytes(content)
        with pytest.raises(CaptureError, match=r"checkpoint-20: must be a checkpoint that can be loaded.*--resume"):
            replay(folder, run, probe_set=tiny_probe_set(), existing="replace")
        assert open_run(run).steps == (3,)
    file.write_bytes(whole)
    config = folder / "checkpoint-20" / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"hidden_size": 32', '"hidden_size": "wide"'))
    with pytest.raises(CaptureError, match="checkpoint-20: must be a checkpoint that can be loaded"):
        replay(folder, run, probe_set=tiny_probe_set(), existing="resume")
    config.write_text("{")
    with pytest.raises(CaptureError, match=r"step 20: .*checkpoint-20: must be a model that transformers can load"):
        replay(folder, run, probe_set=tiny_probe_set(), existing="resume")
    config.write_text(text)
    replay(folder, run, probe_set=tiny_probe_set(), existing="resume")
    assert open_run(run).steps == (3, 20)


def test_pickled_weights_are_not_read(folder: Path) -> None:
    (folder / "checkpoint-20" / "model.safetensors").rename(folder / "checkpoint-20" / "pytorch_model.bin")
    with pytest.raises(CaptureError, match=r"must hold model.safetensors; got .*Weights in pickled files are not read"):
        replay(folder, folder.parent / "run", probe_set=tiny_probe_set())
    assert open_run(folder.parent / "run").steps == (3,)


def test_another_architecture_in_the_middle_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoint-20")
    tiny_classifier(n_layers=3).save_pretrained(folder / "checkpoint-20")
    expected = (
        r"checkpoint-20: .*must be of one architecture, .* with 2 blocks, 4 heads, width 32 \(model\); got .* 3 b"
    )
    with pytest.raises(IncompatibleRunsError, match=expected):
        replay(folder, folder.parent / "run", probe_set=tiny_probe_set())
    assert open_run(folder.parent / "run").steps == (3,)


def test_checkpoints_of_another_training_do_not_go_on_with_a_run(folder: Path) -> None:
    run = folder.parent / "run"
    replay(folder, run, probe_set=tiny_probe_set(), steps=[3])
    file = folder / "checkpoint-20" / "trainer_state.json"
    state = json.loads(file.read_text())
    state["log_history"][0]["loss"] = 0.25
    file.write_text(json.dumps(state))
    with pytest.raises(IncompatibleRunsError, match="must go on with checkpoints of its own training"):
        replay(folder, run, probe_set=tiny_probe_set(), existing="resume")
    replay(folder, run, probe_set=tiny_probe_set(), existing="replace")
    assert any("checkpoint-20 may be of another training" in note for note in open_run(run).notes)


def test_weights_that_are_missing_are_not_made_up(folder: Path) -> None:
    tiny_classifier(n_layers=1).bert.save_pretrained(folder.parent / "other-base")
    with pytest.raises(CaptureError, match=r"other-base: must hold all weights of the embeddings and blocks"):
        replay(folder, folder.parent / "run", probe_set=tiny_probe_set(), base=str(folder.parent / "other-base"))
    with pytest.raises(UsageError, match=r"got nothing there. Give another --base, or none"):
        replay(folder, folder.parent / "run", probe_set=tiny_probe_set(), base="./nowhere")
    shutil.copytree(folder / "checkpoint-3", folder / "checkpoint-0")
    with pytest.raises(UsageError, match="step 0 must be given once"):
        replay(folder, folder.parent / "run", probe_set=tiny_probe_set(), base=str(folder / "checkpoint-3"))


def test_a_probe_set_that_the_model_cannot_take(folder: Path) -> None:
    probe = tiny_probe_set()
    probe.inputs["input_ids"].flags.writeable = True
    probe.inputs["input_ids"][0, 0] = 100
    with pytest.raises(CaptureError, match="checkpoint-3: the snapshot of step 3 must be measured on the probe set"):
        replay(folder, folder.parent / "run", probe_set=probe)


def test_where_there_is_no_checkpoint(folder: Path) -> None:
    with pytest.raises(
        UsageError, match="must be a folder with checkpoint-N folders, or one of them; got nothing there"
    ):
        find_checkpoints(folder / "nowhere")
    with pytest.raises(UsageError, match="or one of them; got a file"):
        find_checkpoints(folder / "checkpoint-7")
    with pytest.raises(UsageError, match=r"must hold checkpoint-N folders .* got an empty folder"):
        find_checkpoints(folder / "checkpoint-x")
    (folder / "checkpoint-x" / "live").mkdir()
    with pytest.raises(UsageError, match=r"must hold checkpoint-N folders .* got \['live'\]"):
        find_checkpoints(folder / "checkpoint-x")
    with pytest.raises(UsageError, match=r"--steps must name steps that have a checkpoint, of \[3, 20\]; got \[4\]"):
        replay(folder, folder.parent / "run", probe_set=tiny_probe_set(), steps=[4, 3])


def test_only_finite_numbers_of_the_log_are_believed(tmp_path: Path) -> None:
    text = """{"global_step": 5, "max_steps": true, "log_history": [3, "x", {"loss": 1},
        {"loss": NaN, "step": 1, "grad": 1e999, "lr": 2e-5, "name": "<script>", "more": {"a": 1}, "flag": true},
        {"step": -1, "loss": 1}, {"step": "2", "loss": 1}, {"step": 2, "big": 1%s}]}"""
    (tmp_path / "trainer_state.json").write_text(text % ("0" * 400))
    log = read_trainer_log(tmp_path)
    assert (log.step, log.max_steps) == (5, None)
    assert log.records == ({"step": 1, "lr": 2e-5}, {"step": 2})
    assert log.n_dropped == 5 + 2 + 2 + 1
    for bad in ("[1]", "{", "[" * 100_000, '{"a": 1' + "0" * 5000 + "}", "\udcff"):
        (tmp_path / "trainer_state.json").write_text(bad, errors="surrogateescape")
        with pytest.raises(CaptureError, match=r"trainer_state.json: must be a JSON object of at most"):
            read_trainer_log(tmp_path)


def test_a_state_that_disagrees_or_cannot_be_read_is_noted(folder: Path) -> None:
    (folder / "checkpoint-20").rename(folder / "checkpoint-21")
    (folder / "checkpoint-3" / "trainer_state.json").write_text("{")
    run = open_run(replay(folder, folder.parent / "run", probe_set=tiny_probe_set()))
    assert run.steps == (3, 21)
    assert run.max_steps == 40
    assert any("checkpoint-21 is taken as step 21, but its trainer_state.json says 20" in note for note in run.notes)
    assert any("What checkpoint-3 logged is left out" in note for note in run.notes)
    shutil.rmtree(folder / "checkpoint-21")
    alone = open_run(replay(folder, folder.parent / "alone", probe_set=tiny_probe_set()))
    assert (alone.max_steps, alone.scalars) == (3, [])


@pytest.mark.filterwarnings("ignore::FutureWarning")  # names that peft still uses
@pytest.mark.parametrize("base_has_head", [True, False])
def test_adapters_start_with_the_adapter_off(base_has_head: bool, make_trainer: Make, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    trainer = make_trainer()
    saved = trainer.model if base_has_head else trainer.model.bert
    saved.save_pretrained(tmp_path / "base")
    kind = tf.BertForSequenceClassification
    torch.manual_seed(0)
    model = kind.from_pretrained(tmp_path / "base", num_labels=3)
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    arguments = {**trainer.args.to_dict(), **SAVING, "learning_rate": 1e-2, "output_dir": str(tmp_path / "output")}
    live = DynprobeCallback(tmp_path / "live", settings=CaptureSettings(schedule="every:4"))
    tf.Trainer(
        peft.get_peft_model(model, lora),
        tf.TrainingArguments(**arguments),
        train_dataset=trainer.train_dataset,
        eval_dataset=trainer.eval_dataset,
        callbacks=[live],
    ).train()
    probe = open_run(tmp_path / "live").probe_set
    after = replay(tmp_path / "output", tmp_path / "after", probe_set=probe)
    assert open_run(after).steps == (0, 4, 8, 12)
    for step in (4, 8, 12):
        assert_same_bits(tmp_path / "live", after, step, without="parameters")
    live_start, start = open_run(tmp_path / "live")[0], open_run(after)[0]
    assert (start.hidden_states(2) == live_start.hidden_states(2)).all(), "B of LoRA is 0 at the start"
    assert (start.hidden_states(2) != open_run(after)[12].hidden_states(2)).any()
    assert (start.outputs() is not None) == base_has_head
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(UsageError, match=r"got nothing there. Say with --base MODEL where the adapters' base is"):
        replay(tmp_path / "output", tmp_path / "again", probe_set=probe)
    again = replay(tmp_path / "output", tmp_path / "again", probe_set=probe, base=str(tmp_path / "moved"))
    for step in (0, 4, 8, 12):
        assert_same_bits(after, again, step)
