"""Drift that is logged while training goes on: it reaches every dashboard once, and training does not notice."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from transformers import Trainer, TrainerCallback, TrainerState

from dynprobe.analysis import attention_js, pairs_from_start
from dynprobe.analysis.drift import Drift
from dynprobe.capture.callback import DynprobeCallback
from dynprobe.capture.inject import OPTIONS, STATUS, InjectedOptions
from dynprobe.capture.injected import attach_from_environment
from dynprobe.capture.injected_loops import LoopCapture
from dynprobe.capture.live import LiveDrift, live_drift, log_to_trainer, show_line
from dynprobe.capture.news import run_names
from dynprobe.capture.recorder import Recorder
from dynprobe.capture.settings import CaptureSettings
from dynprobe.cli.capture import capture as capture_command
from dynprobe.probe_set import ProbeSet
from dynprobe.run import open_run

pytestmark = pytest.mark.slow

Make = Callable[..., Trainer]
SETTINGS = CaptureSettings(schedule="at:2")


@pytest.fixture
def make_trainer(make_trainer: Make) -> Make:
    """Four steps; the loss is logged at 2 and 4, and there are snapshots at 0, 2 and 4."""
    return partial(make_trainer, max_steps=4, logging_steps=2)


class Dashboard(TrainerCallback):
    """Stands for TensorBoard and its like: takes what is logged, once training has begun."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, Any]]] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seen = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        assert self.seen is not None, "nothing may be logged before"
        self.seen.append((state.global_step, dict(logs)))

    def drift(self) -> dict[int, dict[str, float]]:
        assert self.seen is not None
        ours = [(step, logs) for step, logs in self.seen if any(name.startswith("dynprobe/") for name in logs)]
        assert len({step for step, _ in ours}) == len(ours), "each snapshot once"
        return {step: {k: v for k, v in logs.items() if k.startswith("dynprobe/")} for step, logs in ours}


def weights_of(model: torch.nn.Module) -> bytes:
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())


def state_of(trainer: Trainer) -> tuple[bytes, list[Any], bytes, Any]:
    losses = [(r["step"], r["loss"], r["grad_norm"]) for r in trainer.state.log_history if "loss" in r]
    return weights_of(trainer.model), losses, torch.get_rng_state().numpy().tobytes(), random.getstate()


@pytest.mark.parametrize("last", [True, False])
def test_the_drift_of_each_snapshot_reaches_every_dashboard_once(
    last: bool, make_trainer: Make, tmp_path: Path
) -> None:
    board = Dashboard()
    ours = DynprobeCallback(tmp_path / "run", settings=SETTINGS, live=True)
    trainer = make_trainer(callbacks=[ours, board] if last else [board, ours], learning_rate=1e-2)
    trainer.train()
    run = open_run(tmp_path / "run")
    drift = Drift(run.path)
    expected = {step: drift(step) for step in (0, 2, 4)}
    assert board.drift() == expected
    assert "dynprobe/attention_js_divergence/layer_2" in expected[4]
    assert all(type(value) is float for numbers in expected.values() for value in numbers.values())
    for history in (trainer.state.log_history, run.scalars):
        own = [record for record in history if any(name.startswith("dynprobe/") for name in record)]
        assert [record["step"] for record in own] == [0, 2, 4]
        assert all(record.items() >= expected[record["step"]].items() for record in own)


@pytest.mark.parametrize("n_threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_training_ends_with_the_same_bits_and_the_same_log(n_threads: int, make_trainer: Make, tmp_path: Path) -> None:
    """The loss is logged at steps that have a snapshot: the log of the drift must not take its place."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        plain, watched = (
            make_trainer(),
            make_trainer(callbacks=[DynprobeCallback(tmp_path / "run", settings=SETTINGS, live=True)]),
        )
        states = []
        for trainer in (plain, watched):
            random.seed(0)
            torch.manual_seed(0)
            trainer.train()
            states.append(state_of(trainer))
        assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(before)
    assert states[0] == states[1]
    assert [step for step, *_ in states[1][1]] == [2, 4]


def test_a_trainer_that_gathers_numbers_for_its_log_is_not_made_to_log_them_early(
    make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(callbacks=[DynprobeCallback(tmp_path / "run", settings=SETTINGS, live=True)])
    logged: list[dict[str, float]] = []

    def log(logs: dict[str, float], start_time: float | None = None) -> None:
        logged.append(dict(logs))
        Trainer.log(trainer, logs, start_time)

    monkeypatch.setattr(trainer, "log", log)
    trainer.train()
    assert not [name for logs in logged for name in logs if name.startswith("dynprobe/")]
    assert [record["step"] for record in trainer.state.log_history if "dynprobe/isoscore/mean" in record] == [0, 2, 4]


class Stops(TrainerCallback):
    """Ends the training at step 2."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = state.global_step == 2


def test_no_snapshot_is_taken_within_a_log_and_nothing_logged_within_a_snapshot(
    make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only one process logs; of a sharded model all must take part in a snapshot."""
    under_way: list[str] = []
    done: list[str] = []

    def alone(name: str, action: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            under_way.append(name)
            done.append(" within ".join(reversed(under_way)))
            try:
                return action(*arguments)
            finally:
                under_way.pop()

        return wrapped

    monkeypatch.setattr(Recorder, "snapshot", alone("snapshot", Recorder.snapshot))
    monkeypatch.setattr("dynprobe.capture.callback.log_to_trainer", alone("log", log_to_trainer))
    make_trainer(callbacks=[Stops(), DynprobeCallback(tmp_path / "run", settings=SETTINGS, live=True)]).train()
    assert set(done) == {"snapshot", "log"}
    assert open_run(tmp_path / "run").steps == (0, 2)


def test_what_was_to_be_logged_evaluated_or_saved_still_is(make_trainer: Make) -> None:
    trainer = make_trainer()
    for wanted in (True, False):
        trainer.control.should_log = trainer.control.should_evaluate = trainer.control.should_save = wanted
        log_to_trainer(trainer, {"dynprobe/isoscore/mean": 0.5})
        assert trainer.control.should_log is trainer.control.should_evaluate is trainer.control.should_save is wanted


class Refuses(TrainerCallback):
    """A dashboard that is out of order."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if any(name.startswith("dynprobe/") for name in logs) and state.global_step:
            raise ConnectionError("no such host")


def test_a_fault_switches_it_off_and_neither_capture_nor_training(make_trainer: Make, tmp_path: Path) -> None:
    plain = make_trainer()
    plain.train()
    settings = CaptureSettings(schedule="every:1")
    trainer = make_trainer(callbacks=[Refuses(), DynprobeCallback(tmp_path / "run", settings=settings, live=True)])
    with pytest.warns(
        UserWarning, match="live drift is switched off, capture and training go on: no such host"
    ) as caught:
        trainer.train()
    assert len(caught) == 1
    assert weights_of(trainer.model) == weights_of(plain.model)
    assert [r["step"] for r in trainer.state.log_history if "loss" in r] == [2, 4]
    run = open_run(tmp_path / "run")
    assert run.steps == (0, 1, 2, 3, 4)
    assert not [note for note in run.notes if "fault" in note]


def test_a_fault_of_measuring_is_one_as_well(make_trainer: Make, tmp_path: Path) -> None:
    def damage(step: int, path: Path) -> None:
        if step:
            path.write_bytes(b"no snapshot")

    callback = DynprobeCallback(tmp_path / "run", settings=SETTINGS, live=True, on_snapshot=damage)
    trainer = make_trainer(callbacks=[callback])
    with pytest.warns(UserWarning, match="live drift is switched off.*must be a complete dynprobe file"):
        trainer.train()
    assert open_run(tmp_path / "run").steps == (0, 2, 4)


def test_a_resumed_training_is_measured_against_the_start_of_the_run(make_trainer: Make, tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    make_trainer(callbacks=[DynprobeCallback(tmp_path / "run", settings=SETTINGS, live=True)], **options).train()
    board = Dashboard()
    resumed = make_trainer(
        callbacks=[board, DynprobeCallback(tmp_path / "run", settings=SETTINGS, live=True)],
        **options | {"max_steps": 4},
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-2"))
    assert board.drift() == {4: Drift(tmp_path / "run")(4)}, "the snapshot of step 2 was logged before"


def test_without_attention_and_hidden_states_there_is_isotropy(make_trainer: Make, tmp_path: Path) -> None:
    board = Dashboard()
    settings = CaptureSettings(schedule="ends", hidden="none", attention="none")
    make_trainer(callbacks=[board, DynprobeCallback(tmp_path / "run", settings=settings, live=True)]).train()
    assert {name.split("/")[1] for name in board.drift()[4]} == {"isoscore", "cls_std_mean"}


def test_where_only_cls_was_captured_its_attention_has_a_name_of_its_own(make_trainer: Make, tmp_path: Path) -> None:
    settings = CaptureSettings(attention_rows="cls", attention_dtype="float32")
    model = make_trainer().model.train()
    with Recorder(model, probe_set(), tmp_path / "run", settings=settings) as recorder:
        loop(model, 2, recorder.snapshot)
    numbers = {k: v for k, v in Drift(tmp_path / "run")(2).items() if "attention" in k and "layer" in k}
    table = attention_js(pairs_from_start(open_run(tmp_path / "run"))).select(position="cls")
    rows = table[(table["step_a"] == 2) & table["head"].isna()]
    assert numbers == {f"dynprobe/{row.metric}/cls_layer_{row.layer}": row.value for row in rows.itertuples()}
    assert len(numbers) == 2


def probe_set(n: int = 40) -> ProbeSet:
    rng = np.random.default_rng(0)
    return ProbeSet.from_features([{"input_ids": rng.integers(5, 100, size=9)} for _ in range(n)])


def test_nothing_is_logged_where_the_trainer_is_not_known(make_trainer: Make, tmp_path: Path) -> None:
    """Such as in a loop that calls callbacks without being a Trainer."""
    ours = DynprobeCallback(tmp_path / "run", settings=SETTINGS, live=True, probe_set=probe_set())
    trainer, state = make_trainer(), TrainerState(max_steps=4, is_world_process_zero=True)
    ours.on_train_begin(trainer.args, state, trainer.control, model=trainer.model)
    ours.on_step_begin(trainer.args, state, trainer.control)
    ours.on_train_end(trainer.args, state, trainer.control)
    run = open_run(tmp_path / "run")
    assert run.steps == (0,)
    assert run.scalars == trainer.state.log_history == []


def test_nothing_is_logged_unasked(make_trainer: Make, tmp_path: Path) -> None:
    board = Dashboard()
    make_trainer(callbacks=[board, DynprobeCallback(tmp_path / "run", settings=SETTINGS)]).train()
    assert board.drift() == {}


def test_a_command_that_is_captured_with_live(
    make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_names, "n_taken", 0)
    monkeypatch.setenv(STATUS, str(tmp_path / "status"))
    options = InjectedOptions(str(tmp_path / "run"), settings={"schedule": "ends"}, live=True)
    monkeypatch.setenv(OPTIONS, json.dumps(asdict(options)))
    board = Dashboard()
    trainer = make_trainer(callbacks=[board])
    attach_from_environment(trainer)
    trainer.train()
    assert list(board.drift()) == [0, 4]


def test_the_command_line_passes_it_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[InjectedOptions] = []

    def run_with_capture(command: Sequence[str], options: InjectedOptions, status: Path) -> int:
        asked.append(options)
        return 0

    monkeypatch.setattr("dynprobe.capture.inject.run_with_capture", run_with_capture)
    for flags in ([], ["--live"]):
        found = CliRunner().invoke(capture_command, ["-o", str(tmp_path / "run"), *flags, "--", "python", "train.py"])
        assert found.exit_code == 0, found.output
    assert [options.live for options in asked] == [False, True]


def loop(model: nn.Module, n_steps: int, after_step: Callable[[int], object] = lambda step: None) -> bytes:
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.arange(5, 77).reshape(8, 9)
    after_step(0)
    for step in range(1, n_steps + 1):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(input_ids=ids, labels=torch.arange(8) % 3).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            after_step(step)
    return weights_of(model) + torch.get_rng_state().numpy().tobytes()


def test_a_loop_of_ones_own(make_trainer: Make, tmp_path: Path) -> None:
    """In the middle of autocast, and with a log that draws random numbers."""
    plain = loop(make_trainer().model.train(), 6)
    logged: dict[int, dict[str, float]] = {}

    def log(numbers: dict[str, float], step: int) -> None:
        logged[step] = numbers
        random.random()
        torch.rand(3)

    model = make_trainer().model.train()
    with Recorder(model, probe_set(), tmp_path / "run", on_snapshot=live_drift(log)) as recorder:
        assert loop(model, 6, lambda step: recorder.snapshot(step) if step in (0, 6) else None) == plain
    drift = Drift(tmp_path / "run")
    assert logged == {0: drift(0), 6: drift(6)}


def test_a_loop_that_knows_nothing_of_it_gets_a_line_for_each_snapshot(
    make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_names, "n_taken", 0)
    monkeypatch.setenv(STATUS, str(tmp_path / "status"))
    with Recorder(make_trainer().model, probe_set(), tmp_path / "probe") as recorder:
        recorder.snapshot(0)
    options = {"probe_run": str(tmp_path / "probe"), "settings": {"schedule": "every:3"}, "live": True}
    capture = LoopCapture(InjectedOptions(str(tmp_path / "run"), **options))
    handles = [
        register_optimizer_step_pre_hook(lambda optimizer, *_: capture.before_step(optimizer)),
        register_optimizer_step_post_hook(lambda optimizer, *_: capture.after_step(optimizer)),
    ]
    try:
        loop(make_trainer().model.train(), 6)
        capture.end_training()
    finally:
        for handle in handles:
            handle.remove()
    drift = Drift(tmp_path / "run")
    scalars = {record.pop("step"): record for record in open_run(tmp_path / "run").scalars}
    assert scalars == {0: drift(0), 3: drift(3), 6: drift(6)}
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dynprobe: step")]
    assert len(lines) == 3
    assert f"svcca_similarity {drift(6)['dynprobe/svcca_similarity/mean']:.4g}" in lines[2]


def test_a_line_names_the_stack_and_says_when_there_is_nothing_yet(capsys: pytest.CaptureFixture[str]) -> None:
    show_line({"dynprobe/attention_js_divergence/decoder_cross_mean": 1e-6, "dynprobe/isoscore/layer_1": 0.5}, 7)
    show_line({}, 8)
    assert capsys.readouterr().err.splitlines() == [
        "dynprobe: step 7, mean over the layers: decoder cross attention_js_divergence 1e-06",
        "dynprobe: step 8, mean over the layers: nothing to be seen yet",
    ]


def test_a_probe_set_that_is_too_small_is_said_once(make_trainer: Make, tmp_path: Path) -> None:
    model, steps = make_trainer().model, []
    on_snapshot = live_drift(lambda numbers, step: steps.append(step))
    with (
        Recorder(model, probe_set(8), tmp_path / "run", on_snapshot=on_snapshot) as recorder,
        pytest.warns(UserWarning, match=r"too small for 6 of the live numbers, such as .*8 examples") as caught,
    ):
        loop(model, 2, recorder.snapshot)
    assert len(caught) == 1
    assert on_snapshot.is_on


def test_a_process_that_writes_no_snapshot_logs_nothing(tmp_path: Path) -> None:
    live = LiveDrift(lambda numbers, step: pytest.fail("logged"))
    live(0, tmp_path / "snapshots" / "step-00000000.h5")
    assert live.is_on
