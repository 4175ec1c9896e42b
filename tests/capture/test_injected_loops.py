"""Loops without a Trainer, in programs that know nothing of capture: the model is found through the optimizer that steps it."""

import gc
import json
import pickle
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from transformers import BertConfig, BertForSequenceClassification, BertModel

from dynprobe.capture.inject import STATUS, InjectedOptions, run_with_capture
from dynprobe.capture.injected_loops import LoopCapture
from dynprobe.capture.news import run_names
from dynprobe.capture.recorder import Recorder
from dynprobe.capture.schedule import Schedule
from dynprobe.cli.capture import capture as capture_command
from dynprobe.errors import NothingCapturedError, UsageError
from dynprobe.probe_set import ProbeSet
from dynprobe.run import open_run
from dynprobe.storage.probe_file import read_probe_set

pytestmark = pytest.mark.slow

Start = Callable[..., LoopCapture]

MODEL = """
import hashlib, io, pickle, random, sys
import numpy as np, torch
from transformers import BertConfig, BertForSequenceClassification
torch.manual_seed(0); np.random.seed(0); random.seed(0)
model = BertForSequenceClassification(BertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2,
    num_attention_heads=4, intermediate_size=64, num_labels=3, max_position_embeddings=32))
data = [(torch.randint(5, 100, (9,)), i % 3) for i in range(40)]
"""
LOOP = (
    MODEL
    + """
loader = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)
order = []
model.train()
for _ in range(2):
    for ids, labels in loader:
        order.append(ids.tolist())
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if "crash" in sys.argv and len(order) == 7:
            raise ValueError("out of luck")
state = [value.numpy().tobytes() for value in model.state_dict().values()]
moments = [tensor.numpy().tobytes() for moment in optimizer.state.values() for tensor in moment.values()]
randomness = [random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()]
attributes = [sorted(vars(module)) for module in model.modules()] + [sorted(vars(optimizer))]
torch.save(model, io.BytesIO()); pickle.dumps(optimizer)
digest = hashlib.sha256(repr((state, moments, randomness, order, attributes)).encode()).hexdigest()
open(sys.argv[1], "w").write(digest)
"""
)


def classifier(seed: int = 0, *, d_model: int = 32) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=100,
        hidden_size=d_model,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=3,
        max_position_embeddings=32,
    )
    return BertForSequenceClassification(config)


def train(model: nn.Module, *optimizers: torch.optim.Optimizer, n_steps: int) -> None:
    ids = torch.arange(5, 77).reshape(8, 9)
    for _ in range(n_steps):
        model(input_ids=ids, labels=torch.arange(8) % 3).loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


@pytest.fixture(scope="module")
def probe_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run whose probe set the loops use."""
    path = tmp_path_factory.mktemp("probe") / "run"
    rng = np.random.default_rng(0)
    probe = ProbeSet.from_features([{"input_ids": rng.integers(5, 100, size=n)} for n in rng.integers(3, 20, size=20)])
    with Recorder(classifier(), probe, path) as recorder:
        recorder.snapshot(0)
    return str(path)


@pytest.fixture
def start(tmp_path: Path, probe_run: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Capture in this process, as the bootstrap starts it, with `every:2` unless told otherwise."""
    monkeypatch.setattr(run_names, "n_taken", 0)
    monkeypatch.setenv(STATUS, str(tmp_path / "status"))
    gc.collect()  # optimizers of earlier tests
    handles: list[Any] = []

    def begin(settings: dict[str, Any] | None = None, **more: Any) -> LoopCapture:
        options = {"probe_run": probe_run, "settings": {"schedule": "every:2", **(settings or {})}, **more}
        while handles:
            handles.pop().remove()
        capture = LoopCapture(InjectedOptions(str(tmp_path / "run"), **options))
        handles.append(register_optimizer_step_pre_hook(lambda optimizer, *_: capture.before_step(optimizer)))
        handles.append(register_optimizer_step_post_hook(lambda optimizer, *_: capture.after_step(optimizer)))
        return capture

    yield begin
    for handle in handles:
        handle.remove()


def faults(tmp_path: Path) -> list[str]:
    lines = map(json.loads, (tmp_path / "status").read_text().splitlines())
    return [line["reason"] for line in lines if line["event"] == "fault"]


def command(tmp_path: Path, text: str, *arguments: str) -> list[str]:
    script = tmp_path / "train.py"
    script.write_text(text, encoding="utf-8")
    return [sys.executable, str(script), str(tmp_path / "digest"), *arguments]


@pytest.mark.slow
def test_an_unmodified_loop_is_captured_and_no_bit_of_it_changes(tmp_path: Path, probe_run: str) -> None:
    loop = command(tmp_path, LOOP)
    options = InjectedOptions(str(tmp_path / "run"), probe_run=probe_run, settings={"schedule": "every:4"})
    assert run_with_capture(loop, options, tmp_path / "s") == 0
    captured = (tmp_path / "digest").read_text()
    assert open_run(tmp_path / "run").steps == (0, 4, 8, 10)
    subprocess.run(loop, check=True)
    assert (tmp_path / "digest").read_text() == captured, "weights, optimizer, randomness, order, attributes"


@pytest.mark.slow
def test_a_crash_keeps_what_was_captured_and_the_exit_code(tmp_path: Path, probe_run: str) -> None:
    options = InjectedOptions(str(tmp_path / "run"), probe_run=probe_run, settings={"schedule": "every:4"})
    assert run_with_capture(command(tmp_path, LOOP, "crash"), options, tmp_path / "s") == 1
    assert open_run(tmp_path / "run").steps == (0, 4, 7), "also the last step, whose weights were whole"


@pytest.mark.slow
def test_without_a_probe_set_nothing_is_captured_and_it_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(NothingCapturedError, match=r"Give texts .*\(--probe FILE --tokenizer") as error:
        run_with_capture(command(tmp_path, LOOP), InjectedOptions(str(tmp_path / "run")), tmp_path / "s")
    assert error.value.exit_code == 4
    assert (tmp_path / "digest").is_file(), "the program went on to its end"


@pytest.mark.slow
def test_a_trainer_is_not_captured_twice(tmp_path: Path) -> None:
    """Also when a loop of the program's own follows it: that is another training, with a directory of its own."""
    trainer = """
from transformers import Trainer, TrainingArguments
rows = [{"input_ids": ids.tolist(), "labels": label} for ids, label in data]
args = TrainingArguments(output_dir=sys.argv[1] + "-out", max_steps=3, per_device_train_batch_size=8, report_to=[],
    use_cpu=True, disable_tqdm=True, save_strategy="no")
Trainer(model, args, train_dataset=rows, eval_dataset=rows[:20]).train()
"""
    options = InjectedOptions(str(tmp_path / "run"))
    assert run_with_capture(command(tmp_path, MODEL + trainer), options, tmp_path / "s") == 0
    assert open_run(tmp_path / "run").steps == (0, 1, 2, 3)
    assert [path.name for path in tmp_path.glob("run*")] == ["run"]
    assert not [line for line in (tmp_path / "s").read_text().splitlines() if "fault" in line]
    after = (
        trainer
        + "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        + (
            "for ids, label in data[:2]:\n"
            "    model(input_ids=ids[None], labels=torch.tensor([label])).loss.backward(); optimizer.step()\n"
        )
    )
    options = InjectedOptions(str(tmp_path / "both"), probe_run=str(tmp_path / "run"))
    assert run_with_capture(command(tmp_path, MODEL + after), options, tmp_path / "s") == 0
    assert open_run(tmp_path / "both").steps == (0, 1, 2, 3)
    assert open_run(tmp_path / "both-2").steps == (0, 1, 2)


@pytest.mark.slow
def test_a_compiled_step_stays_whole_and_is_not_seen(tmp_path: Path, probe_run: str) -> None:
    compiled = (
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "step = torch.compile(lambda: optimizer.step(), backend='eager')\n"
        "model(input_ids=data[0][0][None], labels=torch.tensor([1])).loss.backward()\n"
        "step()\n"
    )
    options = InjectedOptions(str(tmp_path / "run"), probe_run=probe_run)
    with pytest.raises(NothingCapturedError, match=r"Steps inside torch.compile cannot be seen"):
        run_with_capture(command(tmp_path, MODEL + compiled), options, tmp_path / "s")


def test_the_snapshots_are_those_of_a_recorder_in_the_loop(start: Start, tmp_path: Path, probe_run: str) -> None:
    probe = read_probe_set(Path(probe_run) / "probes" / "main.h5")
    model = classifier()
    optimizer = adam(model)
    with Recorder(model, probe, tmp_path / "own") as recorder:
        for step in range(6):
            if step in (0, 2, 4):
                recorder.snapshot(step)
            train(model, optimizer, n_steps=1)
        recorder.snapshot(6)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    capture = start()
    model = classifier()
    train(model, adam(model), n_steps=6)
    capture.end_program()
    own, injected = open_run(tmp_path / "own"), open_run(tmp_path / "run")
    assert injected.steps == own.steps == (0, 2, 4, 6)
    for step in own.steps:
        for layer in range(3):
            assert np.array_equal(own[step].hidden_states(layer), injected[step].hidden_states(layer))
    assert all(torch.equal(expected[name], value) for name, value in model.state_dict().items())


def test_probe_tasks_in_a_loop_change_no_bit(start: Start, tmp_path: Path, saved_model: Path) -> None:
    split = {"texts": [["a cat"], ["the dog"], ["that is it"]], "labels": [0, 1, 1]}
    (tmp_path / "tasks.json").write_text(json.dumps({"own": {"label_names": None, "train": split, "test": split}}))
    model = classifier().train()
    train(model, adam(model), n_steps=2)
    expected, state = model.state_dict(), torch.get_rng_state()
    capture = start(probe_tasks=str(tmp_path / "tasks.json"), tokenizer=str(saved_model))
    model = classifier().train()
    train(model, adam(model), n_steps=2)
    capture.end_program()
    run = open_run(tmp_path / "run")
    assert [snapshot.pooled("mean", 2, probe="own.train").shape for snapshot in run] == [(3, 32)] * 2
    assert run.random_encoder("own", "train", "mean", 2) is not None
    assert all(torch.equal(expected[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_last_step_is_taken_when_the_optimizer_is_gone_and_the_next_training_has_its_own_run(
    start: Start, tmp_path: Path
) -> None:
    start({"schedule": "ends"})
    for seed in (0, 1):
        model = classifier(seed)
        train(model, adam(model), n_steps=3)
        assert open_run(tmp_path / ("run" if seed == 0 else "run-2")).steps == (0, 3)


def test_a_training_begun_while_the_optimizer_of_the_last_still_lives(start: Start, tmp_path: Path) -> None:
    capture = start({"schedule": "ends"})
    kept = []
    for seed in (0, 1):
        model = classifier(seed)
        kept.append((model, adam(model)))
        train(*kept[-1], n_steps=3)
    capture.end_program()
    assert [open_run(tmp_path / name).steps for name in ("run", "run-2")] == [(0, 3)] * 2


def test_two_optimizers_of_one_model_make_one_step(start: Start, tmp_path: Path, probe_run: str) -> None:
    """The snapshot is taken when both have stepped, as a Recorder at the end of the loop's body would."""
    model = classifier()
    head, body = torch.optim.SGD(model.classifier.parameters(), lr=0.1), adam(model.bert)
    with Recorder(model, read_probe_set(Path(probe_run) / "probes" / "main.h5"), tmp_path / "own") as recorder:
        train(model, head, body, n_steps=2)
        recorder.snapshot(2)
    capture = start()
    model = classifier()
    head, body = torch.optim.SGD(model.classifier.parameters(), lr=0.1), adam(model.bert)
    train(model, head, body, n_steps=3)
    capture.end_program()
    run = open_run(tmp_path / "run")
    assert run.steps == (0, 2, 3)
    assert np.array_equal(run[2].hidden_states(2), open_run(tmp_path / "own")[2].hidden_states(2))


def test_an_optimizer_that_steps_now_and_then(start: Start, tmp_path: Path) -> None:
    capture = start()
    model = classifier()
    head, body = torch.optim.SGD(model.classifier.parameters(), lr=0.1), adam(model.bert)
    for _ in range(2):
        train(model, body, n_steps=2)
        train(model, body, head, n_steps=1)
    capture.end_program()
    assert open_run(tmp_path / "run").steps == (0, 2, 4, 6)


def test_the_largest_trained_transformer_wins_whatever_steps_first(start: Start, tmp_path: Path) -> None:
    capture = start()
    small, large, teacher = classifier(d_model=16), classifier(d_model=32), classifier(d_model=64)
    optimizers = adam(small), adam(large)
    teacher.requires_grad_(False)
    frozen = adam(teacher)
    critic = nn.Linear(3, 1)
    other = torch.optim.SGD(critic.parameters(), lr=0.1)
    for _ in range(3):
        critic(torch.ones(3)).sum().backward()
        other.step()
        train(small, optimizers[0], n_steps=1)
        train(large, optimizers[1], n_steps=1)
    capture.end_program()
    run = open_run(tmp_path / "run")
    assert run.steps == (0, 2, 3)
    assert run[3].hidden_states(1).shape[1] == 32
    assert [path.name for path in tmp_path.glob("run*")] == ["run"]
    assert frozen.param_groups


class Pair(nn.Module):
    """Two encoders in a module that is no transformers model."""

    def __init__(self) -> None:
        super().__init__()
        self.query = classifier(d_model=16).bert
        self.passage = classifier(d_model=32).bert
        self.head = nn.Linear(48, 3)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> Any:
        states = [encoder(input_ids).last_hidden_state[:, 0] for encoder in (self.query, self.passage)]
        logits = self.head(torch.cat(states, dim=1))
        return type("Output", (), {"loss": nn.functional.cross_entropy(logits, labels)})


@pytest.mark.parametrize(("name", "width"), [(None, 32), ("query", 16), ("BertModel", 32)])
def test_which_of_the_transformers_in_a_module(name: str | None, width: int, start: Start, tmp_path: Path) -> None:
    capture = start(model_attr=name)
    model = Pair()
    train(model, adam(model), n_steps=1)
    capture.end_program()
    assert open_run(tmp_path / "run")[1].hidden_states(1).shape[1] == width


def test_a_part_and_a_variable_can_be_named(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier()
    monkeypatch.setattr(sys.modules["__main__"], "student", model, raising=False)
    capture = start(model_attr="student.bert")
    train(model, adam(model), n_steps=1)
    capture.end_program()
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["model"]["model_class"] == "BertModel"


def test_a_name_that_nothing_has(start: Start, tmp_path: Path) -> None:
    start(model_attr="encoder")
    model = classifier()
    with pytest.warns(
        UserWarning, match=r"got 'encoder', and there is BertForSequenceClassification, BertModel \(bert\)"
    ):
        train(model, adam(model), n_steps=1)
    assert "`--model-attr` must be" in faults(tmp_path)[-1]


def test_the_largest_never_stepped(start: Start, tmp_path: Path) -> None:
    capture = start()
    small, large = classifier(d_model=16), classifier()
    optimizers = adam(small), adam(large)
    train(small, optimizers[0], n_steps=2)
    capture.end_program()
    assert "BertForSequenceClassification, was never stepped. Give --model-attr" in faults(tmp_path)[-1]
    assert not (tmp_path / "run").exists()


def test_nothing_is_left_on_model_and_optimizer(start: Start) -> None:
    capture = start()
    model = classifier()
    optimizer = adam(model)
    before = [sorted(vars(module)) for module in model.modules()], sorted(vars(optimizer))
    train(model, optimizer, n_steps=3)
    assert ([sorted(vars(module)) for module in model.modules()], sorted(vars(optimizer))) == before
    pickle.dumps(model)
    pickle.dumps(optimizer)
    capture.end_program()


def test_the_model_is_not_kept_alive(start: Start) -> None:
    start()
    model = classifier()
    reference = weakref.ref(model)
    train(model, adam(model), n_steps=1)
    gc.disable()
    try:
        del model
        assert reference() is None, "without the help of the garbage collector"
    finally:
        gc.enable()


def test_a_closure(start: Start, tmp_path: Path) -> None:
    capture = start()
    model = classifier().eval()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)
    ids = torch.arange(5, 77).reshape(8, 9)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=torch.arange(8) % 3).loss
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    capture.end_program()
    assert open_run(tmp_path / "run").steps == (0, 2, 3)


def test_an_optimizer_class_that_passes_its_step_on(start: Start, tmp_path: Path) -> None:
    """Both its own step and that of its parent class call the hooks; it is one step."""

    class Careful(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    capture = start()
    model = classifier()
    adam(nn.Linear(1, 1))
    train(model, Careful(model.parameters(), lr=1e-3), n_steps=3)
    capture.end_program()
    assert open_run(tmp_path / "run").steps == (0, 2, 3)


@pytest.mark.parametrize("change", ["reload", "average"])
def test_weights_that_are_changed_after_training_are_not_taken_for_the_last(
    change: str, start: Start, tmp_path: Path
) -> None:
    capture = start({"schedule": "ends"})
    model = classifier()
    best = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = adam(model)
    train(model, optimizer, n_steps=2)
    if change == "reload":
        model.load_state_dict(best)
    else:
        for parameter in model.parameters():
            parameter.data.mul_(0.9)
    capture.end_program()
    run = open_run(tmp_path / "run")
    assert run.steps == (0,)
    assert any("weights after the last step (2) were not captured" in note for note in run.notes)


def test_a_fault_ends_capture_and_not_training(start: Start, tmp_path: Path) -> None:
    capture = start()
    model = classifier()
    optimizer = adam(model)
    train(model, optimizer, n_steps=1)
    (tmp_path / "run" / "snapshots").rename(tmp_path / "elsewhere")
    (tmp_path / "run" / "snapshots").write_text("a file where the folder was")
    with pytest.warns(UserWarning, match="capture is switched off, training goes on"):
        train(model, optimizer, n_steps=5)
    assert len(faults(tmp_path)) == 1, "said once"
    capture.end_program()


def test_a_training_that_goes_on_from_a_checkpoint(start: Start, tmp_path: Path) -> None:
    capture = start()
    model = classifier()
    optimizer = adam(model)
    train(model, optimizer, n_steps=3)
    capture.end_program()
    checkpoint = optimizer.state_dict()
    capture = start(existing="resume")
    run_names.n_taken = 0
    resumed = adam(model)
    resumed.load_state_dict(checkpoint)
    train(model, resumed, n_steps=2)
    capture.end_program()
    assert open_run(tmp_path / "run").steps == (0, 2, 3, 4, 5)
    capture = start(existing="resume")
    run_names.n_taken = 0
    with pytest.warns(UserWarning, match="must know how many steps it has behind it"):
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), n_steps=1)


def test_the_number_of_steps_can_be_given(start: Start, tmp_path: Path) -> None:
    capture = start({"schedule": "log:3"}, max_steps=9)
    model = classifier()
    train(model, adam(model), n_steps=10)
    capture.end_program()
    assert open_run(tmp_path / "run").steps == (0, 1, 3, 9, 10)


def test_a_budget_keeps_room_for_the_last_step(start: Start, tmp_path: Path) -> None:
    settings = {"schedule": "every:1", "budget": 400_000, "attention": 4, "hidden": 50}
    capture = start(settings)
    model = classifier()
    train(model, adam(model), n_steps=40)
    capture.end_program()
    run = open_run(tmp_path / "run")
    assert 3 < len(run.steps) < 30
    assert run.steps[-1] == 40
    assert sum(run[step].n_bytes for step in run.steps) <= 400_000
    assert any("budget of 400 kB was reached" in note for note in run.notes)


def test_probe_texts_and_the_tokenizer_of_the_models_folder(start: Start, tmp_path: Path, saved_model: Path) -> None:
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps([["a cat"], ["the dog"], ["of an owl"]]))
    for asked in ({"tokenizer": str(saved_model)}, {}):
        capture = start(probe_run=None, probe_texts=str(texts), **asked)
        model = BertModel.from_pretrained(saved_model)
        optimizer = adam(model)
        model(torch.tensor([[2, 5, 3]])).last_hidden_state.sum().backward()
        optimizer.step()
        capture.end_program()
    one, two = open_run(tmp_path / "run"), open_run(tmp_path / "run-2")
    assert one.probe_set.texts is not None
    assert one.probe_set.fingerprint == two.probe_set.fingerprint
    assert one.probe_set.n_examples == 3


def test_texts_without_a_tokenizer_and_tokens_of_another_model(start: Start, tmp_path: Path, saved_model: Path) -> None:
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps([["a cat"]]))
    start(probe_run=None, probe_texts=str(texts))
    model = classifier()
    with pytest.warns(UserWarning, match="Give --tokenizer NAME_OR_FOLDER"):
        train(model, adam(model), n_steps=1)
    model = BertModel(BertConfig(vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    optimizer = adam(model)
    model(torch.tensor([[2, 5, 3]])).last_hidden_state.sum().backward()
    start(probe_run=None, probe_texts=str(texts), tokenizer=str(saved_model))
    with pytest.warns(UserWarning, match="must be tokens of the model, 0 to 8; got"):
        optimizer.step()


@pytest.mark.slow
def test_a_model_that_is_compiled(start: Start, tmp_path: Path) -> None:
    capture = start()
    model = classifier()
    compiled = torch.compile(model, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dynamo's own
        train(compiled, adam(compiled), n_steps=3)
    capture.end_program()
    assert open_run(tmp_path / "run").steps == (0, 2, 3)


@pytest.mark.parametrize(
    ("rule", "steps"),
    [
        ("log:5", [1, 10, 100, 1000, 10_000, 100_000]),
        ("log:1", [1, None]),
        ("every:3", [3, 6, 9]),
        ("at:2,7", [2, 7, None]),
        ("ends", [None]),
    ],
)
def test_the_steps_of_a_training_of_unknown_length(rule: str, steps: list[int | None]) -> None:
    schedule, step = Schedule.parse(rule), 0
    for expected in steps:
        following = schedule.step_after(step)
        assert following == expected
        step = following or step


def test_what_the_command_line_hands_over(tmp_path: Path, saved_model: Path) -> None:
    texts = tmp_path / "texts.csv"
    texts.write_text("text_a,text_b\na cat,a dog\nan owl,the fox\n")
    code = (
        "import json, os, sys; asked = json.loads(os.environ['DYNPROBE_CAPTURE'])\n"
        f"asked['texts'] = json.load(open(asked['probe_texts'])); json.dump(asked, open({str(tmp_path / 'got')!r}, 'w'))\n"
        "sys.exit(7)"
    )
    options = ["--tokenizer", str(saved_model), "--model-attr", "encoder", "--max-steps", "9", "--probe", str(texts)]
    called = CliRunner().invoke(
        capture_command, ["-o", str(tmp_path / "run"), *options, "--", sys.executable, "-c", code]
    )
    assert called.exit_code == 7
    got = json.loads((tmp_path / "got").read_text())
    assert got["texts"] == [["a cat", "a dog"], ["an owl", "the fox"]]
    assert (got["tokenizer"], got["model_attr"], got["max_steps"]) == (str(saved_model), "encoder", 9)
    assert got["probe_run"] is None


def test_a_tokenizer_without_texts(tmp_path: Path, probe_run: str) -> None:
    options = ["-o", str(tmp_path / "run"), "--tokenizer", "any", "--probe", probe_run]
    called = CliRunner().invoke(capture_command, [*options, "--", "true"])
    assert isinstance(called.exception, UsageError)
    assert "--tokenizer must go with --probe FILE" in str(called.exception)
