"""Kills, full disks, faults of capture: nothing is lost, and training goes on unless it was asked not to."""

import ast
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from dynprobe.capture import inject
from dynprobe.capture.callback import DynprobeCallback
from dynprobe.capture.models import load_model, load_tokenizer
from dynprobe.capture.recorder import Recorder
from dynprobe.capture.replay import replay
from dynprobe.errors import CaptureError, UsageError
from dynprobe.run import open_run
from dynprobe.storage.directory import read_manifest
from dynprobe.storage.folder import list_steps
from dynprobe.storage.verify import verify_run
from tests.conftest import tiny_classifier, tiny_probe_set

Make = Callable[..., Trainer]

# Imports once, then makes a child for each kill. A child takes snapshots as fast as it can and says which are done; it is
# killed at a moment that nobody has chosen. Every fifth run is a new one, all others go on with what was killed before.
ZYGOTE = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from dynprobe.capture.recorder import Recorder
from dynprobe.run import open_run
from dynprobe.storage.directory import list_steps, read_scalars
from dynprobe.storage.verify import verify_run
from tests.conftest import tiny_classifier, tiny_probe_set

folder, n_kills = Path(sys.argv[1]), int(sys.argv[2])
model, probe, rng = tiny_classifier(), tiny_probe_set(12), random.Random(7)
found = {"kills": 0, "acknowledged": 0, "temporary": 0, "not in ledger": 0, "before the first": 0, "wrong": []}

pace = {True: 0.2, False: 0.05}  # seconds that beginning and one snapshot took last, on this machine under this load

def temporary(run):
    return [file.name for file in run.rglob("*.tmp")] if run.exists() else []

def work(run, say):
    with Recorder(model, probe, run, existing="resume") as recorder:
        os.write(say, f"left {len(temporary(run))}\\n".encode())
        step = max(recorder.steps, default=-1) + 1
        while True:
            with torch.no_grad():
                model.classifier.bias += 1
            recorder.log({"step": step, "loss": 1.0})
            recorder.snapshot(step)
            os.write(say, f"{step}\\n".encode())
            step += 1

def killed(run):
    hear, say = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(hear)
        try:
            work(run, say)
        except BaseException as error:
            os.write(say, f"failed {type(error).__name__}: {error}\\n".encode())
        os._exit(1)
    os.close(say)
    with os.fdopen(hear) as stream:
        said = []
        for _ in range(rng.choice((0, 1, 2, 3, 4, 6))):  # 0: in the middle of beginning, or of the first snapshot
            begun = time.perf_counter()
            said.append(stream.readline().strip())
            pace[len(said) == 1] = time.perf_counter() - begun
        time.sleep(rng.uniform(0.0, 1.2) * pace[not said])
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return said + stream.read().split("\\n")

def check(run, said):
    wrong = [line for line in said if line.startswith("failed")]
    wrong += [line for line in said if line.startswith("left") and line != "left 0"]
    steps = {int(line) for line in said if line.isdigit()}
    if not steps:
        found["before the first"] += 1
    if not run.exists() or not (run / "probes" / "main.h5").exists():
        return wrong + [f"{steps} are gone"] * bool(steps)
    checks = list(verify_run(run))
    # A writer that was killed before its first manifest leaves none; what is needed to read is in the files.
    wrong += [f"{c.path} {p}" for c in checks for p in c.problems if "manifest.json" not in str(c.path)]
    found["not in ledger"] += sum(len(c.remarks) for c in checks if c.path.parent.name == "snapshots")
    if not steps <= set(list_steps(run)):
        wrong.append(f"{steps - set(list_steps(run))} are lost")
    for snapshot in open_run(run, verify=(run / "manifest.json").exists()):
        snapshot.hidden_states(1), snapshot.outputs(), list(snapshot.attentions(1))
        snapshot.close()
    if not {record["step"] for record in read_scalars(run)} >= steps:
        wrong.append("scalars are lost")
    found["acknowledged"] += len(steps)
    found["temporary"] += len(temporary(run))
    return wrong

for number in range(n_kills):
    run = folder / f"run-{number // 5}"
    found["kills"] += 1
    found["wrong"] += [f"{number}: {word}" for word in check(run, killed(run))]
for run in sorted(folder.iterdir()):
    with Recorder(model, probe, run, existing="resume"):
        pass
    found["wrong"] += [f"{c.path} {c.problems} {c.remarks}" for c in verify_run(run) if c.problems or c.remarks]
    found["wrong"] += temporary(run)
sys.stdout.write(json.dumps(found))
"""


def kills(folder: Path, n: int) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ZYGOTE, str(folder), str(n)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout))


@pytest.mark.slow
def test_a_hundred_kills_lose_nothing(tmp_path: Path) -> None:
    found = kills(tmp_path, 100)
    assert found["wrong"] == []
    assert found["kills"] == 100
    assert found["acknowledged"] > 100, "snapshots were taken"
    assert found["temporary"] > 5, "kills came in the middle of writing"


def on(path: Path, n_left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a disk with so many bytes left: reserving a file of more fails, as the file system itself would say."""
    real = os.posix_fallocate

    def reserve(descriptor: int, start: int, length: int) -> None:
        if length > n_left:
            raise OSError(28, "No space left on device")
        real(descriptor, start, length)

    monkeypatch.setattr(os, "posix_fallocate", reserve)


class FillsUp(TrainerCallback):
    """Fills the disk at step 3, up to a level; `dead`: so that not even the manifest can be written."""

    def __init__(self, path: Path, n_left: int, monkeypatch: pytest.MonkeyPatch, *, dead: bool = False) -> None:
        self.path, self.n_left, self.monkeypatch, self.dead = path, n_left, monkeypatch, dead

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step != 2:
            return
        on(self.path, self.n_left, self.monkeypatch)
        if self.dead:

            def full(descriptor: int) -> None:
                raise OSError(28, "No space left on device")

            self.monkeypatch.setattr(os, "fsync", full)


def weights_of(model: torch.nn.Module) -> bytes:
    return b"".join(value.numpy().tobytes() for value in model.state_dict().values())


@pytest.mark.parametrize(
    "part", ["dead", *(pytest.param(part, marks=pytest.mark.slow) for part in (0.0, 0.2, 0.5, 0.9, 0.999))]
)
def test_a_disk_that_fills_up_ends_capture_and_not_training(
    part: float | str, make_trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make_trainer(max_steps=6)
    plain.train()
    run = tmp_path / "run"
    with Recorder(tiny_classifier(), tiny_probe_set(), tmp_path / "size") as recorder:
        size = recorder.snapshot(0).stat().st_size
    n_left = 0 if part == "dead" else int(size * float(part))
    ours = DynprobeCallback(run)
    trainer = make_trainer(callbacks=[ours, FillsUp(run, n_left, monkeypatch, dead=part == "dead")], max_steps=6)
    with pytest.warns(
        UserWarning, match="dynprobe: capture is switched off, training goes on: .*No space left"
    ) as said:
        trainer.train()
    monkeypatch.undo()
    ours_said = [str(warning.message) for warning in said if "dynprobe" in str(warning.message)]
    assert len(ours_said) == 1, "said once"
    assert ("could not be noted in the run" in ours_said[0]) == (part == "dead")
    assert trainer.state.global_step == 6
    assert weights_of(trainer.model) == weights_of(plain.model)
    assert open_run(run, verify=True).steps == (0, 1, 2)
    assert [check for check in verify_run(run) if check.problems or check.remarks] == []
    assert list(run.rglob("*.tmp")) == []
    status = read_manifest(run)["status"]
    if part == "dead":
        assert status["state"] == "capturing"
    else:
        assert (status["state"], status["step"]) == ("fault", 3)
        assert "No space left" in status["reason"]


@pytest.mark.parametrize("n_left", [0, 50_000, 10**9])
def test_a_recorder_on_a_full_disk(n_left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Recorder(tiny_classifier(), tiny_probe_set(), tmp_path / "run") as recorder:
        recorder.snapshot(0)
        on(tmp_path, n_left, monkeypatch)
        if n_left < 10**9:
            with pytest.raises(OSError, match="No space left"):
                recorder.snapshot(1)
        else:
            recorder.snapshot(1)
        monkeypatch.undo()
        recorder.snapshot(2)
    assert list_steps(tmp_path / "run") == ((0, 2) if n_left < 10**9 else (0, 1, 2))
    assert [check for check in verify_run(tmp_path / "run") if check.problems or check.remarks] == []


def test_the_status_says_how_a_capture_ended(make_trainer: Make, tmp_path: Path) -> None:
    states: list[str] = []

    def look(step: int, path: Path) -> None:
        states.append(read_manifest(tmp_path / "run")["status"]["state"])

    make_trainer(callbacks=[DynprobeCallback(tmp_path / "run", on_snapshot=look)], max_steps=2).train()
    assert states == ["capturing"] * 3
    status = read_manifest(tmp_path / "run")["status"]
    assert (status["state"], status["reason"], status["step"]) == ("finished", None, 2)
    with Recorder(tiny_classifier(), tiny_probe_set(), tmp_path / "other"):
        pass
    assert read_manifest(tmp_path / "other")["status"]["state"] == "finished"

    def fail(step: int, path: Path) -> None:
        look(step, path)
        raise KeyError("mine")

    recorder = Recorder(tiny_classifier(), tiny_probe_set(), tmp_path / "other", existing="resume", on_snapshot=fail)
    with pytest.raises(KeyError, match="mine"), recorder:
        recorder.snapshot(0)
    status = read_manifest(tmp_path / "other")["status"]
    assert (status["state"], status["reason"], status["step"]) == ("fault", "'mine'", 0)


def test_an_interrupted_training_is_not_called_finished(make_trainer: Make, tmp_path: Path) -> None:
    class Interrupt(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            raise KeyboardInterrupt

    ours = DynprobeCallback(tmp_path / "run")
    trainer = make_trainer(callbacks=[ours, Interrupt()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert read_manifest(tmp_path / "run")["status"]["state"] == "capturing"
    ours._stop(finished=False)
    assert read_manifest(tmp_path / "run")["status"]["state"] == "capturing"


def broken(step: int, path: Path) -> None:
    if step == 3:
        raise ZeroDivisionError("a defect of ours")


def test_strict_raises_the_fault(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer(callbacks=[DynprobeCallback(tmp_path / "run", on_snapshot=broken, strict=True)], max_steps=4)
    with pytest.raises(ZeroDivisionError, match="a defect of ours"):
        trainer.train()
    assert trainer.state.global_step == 3
    status = read_manifest(tmp_path / "run")["status"]
    assert (status["state"], status["reason"]) == ("fault", "a defect of ours")


def test_processes_that_do_not_write_never_claim_the_run(make_trainer: Make, tmp_path: Path) -> None:
    trainer = make_trainer()
    trainer.state.is_world_process_zero = False
    callback = DynprobeCallback(tmp_path / "run")
    for event in ("on_train_begin", "on_step_end", "on_log", "on_train_end"):
        getattr(callback, event)(trainer.args, trainer.state, trainer.control, model=trainer.model)
    assert callback.recorder is None
    assert not (tmp_path / "run").exists()


TRAINING = """
import sys, torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
torch.set_num_threads(1)
config = BertConfig(vocab_size=100, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
model = BertForSequenceClassification(config)
rows = [{"input_ids": [5, 6 + i % 7, 8], "attention_mask": [1, 1, 1], "labels": i % 2} for i in range(16)]
if sys.argv[1] == "trainer":
    arguments = TrainingArguments(sys.argv[2], max_steps=4, report_to=[], use_cpu=True, save_strategy="no")
    Trainer(model, arguments, train_dataset=rows, eval_dataset=rows).train()
else:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        batch = {k: torch.tensor([row[k] for row in rows]) for k in rows[0]}
        model(**batch).loss.backward()
        if step == int(sys.argv[3]):
            with torch.no_grad():
                model.classifier.weight.fill_(float("nan"))
        optimizer.step()
    if sys.argv[3] == "4":
        with torch.no_grad():
            model.classifier.weight.fill_(float("nan"))
            model.classifier.weight += 0
print("the training has ended")
"""


def captured(tmp_path: Path, how: str, *, strict: bool, at: int = 9, options: tuple[str, ...] = ()) -> Any:
    """Run the program under `dynprobe capture`."""
    script = tmp_path / "program.py"
    script.write_text(TRAINING, encoding="utf-8")
    flags = ["--strict"] * strict
    program = [sys.executable, str(script), how, str(tmp_path / "out"), str(at)]
    command = [
        sys.executable,
        "-m",
        "dynprobe",
        "capture",
        "-o",
        str(tmp_path / "run"),
        *options,
        *flags,
        "--",
        *program,
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
def test_strict_ends_a_program_that_does_not_know_of_capture(strict: bool, tmp_path: Path) -> None:
    """Its run directory is taken by somebody else's files: capture cannot begin."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").touch()
    done = captured(tmp_path, "trainer", strict=strict)
    assert ("the training has ended" in done.stdout) != strict
    assert ("Traceback" in done.stderr) == strict
    assert "must be new or empty" in done.stderr
    assert done.returncode == (1 if strict else 4), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
def test_strict_ends_a_loop_that_does_not_know_of_capture(strict: bool, tmp_path: Path, make_run: Any) -> None:
    """The weights become NaN at the third step: the snapshot after it is a fault."""
    probe = make_run("probe", steps=(0,))
    options = ("--probe", str(probe), "--schedule", "every:1")
    done = captured(tmp_path, "loop", strict=strict, at=2, options=options)
    assert ("the training has ended" in done.stdout) != strict, done.stderr
    assert ("Traceback" in done.stderr) == strict
    assert "activations must be finite" in done.stderr
    assert done.returncode == (1 if strict else 0)
    status = read_manifest(tmp_path / "run")["status"]
    assert (status["state"], status["step"]) == ("fault", 3)
    assert open_run(tmp_path / "run", verify=True).steps == (0, 1, 2)


def test_a_fault_while_a_program_ends_is_told_by_the_command_that_waits(tmp_path: Path) -> None:
    status = tmp_path / "status"
    news = '{"event": "capturing"}\n{"event": "fault", "reason": "too late"}\n'
    write = f"open({str(status)!r}, 'w').write({news!r})"
    folder = tmp_path / "run" / "snapshots"
    code = f"{write}; import pathlib; p = pathlib.Path({str(folder)!r}); p.mkdir(parents=True, exist_ok=True)"
    command = [sys.executable, "-c", f"{code}; (p / 'step-00000000.h5').touch()"]
    options = inject.InjectedOptions(str(tmp_path / "run"), existing="replace", strict=True)
    with pytest.raises(CaptureError, match="capture was strict and had a fault: too late"):
        inject.run_with_capture(command, options, status)
    (folder / "step-00000000.h5").unlink()
    assert (
        inject.run_with_capture(command, inject.InjectedOptions(str(tmp_path / "run"), existing="replace"), status) == 0
    )


def test_giving_up_shows_the_fault_and_passes_walls(capsys: pytest.CaptureFixture[str]) -> None:
    def program() -> None:
        try:
            inject.give_up(ValueError("the fault"))
        except Exception:  # noqa: BLE001 - the wall that it must pass
            return

    with pytest.raises(SystemExit) as ended:
        program()
    assert ended.value.code == 1
    assert "ValueError: the fault" in capsys.readouterr().err


def test_reading_goes_on_while_writing_goes_on(tmp_path: Path) -> None:
    """A reader that is opened again and again beside a writer sees only what is complete, and each file stays as it was."""
    seen: dict[int, bytes] = {}
    with Recorder(tiny_classifier(), tiny_probe_set(8), tmp_path / "run") as recorder:

        def look(step: int, path: Path) -> None:
            run = open_run(tmp_path / "run", verify=True)
            for snapshot in run:
                now = snapshot.hidden_states(1).tobytes()
                assert seen.setdefault(snapshot.step, now) == now

        recorder._on_snapshot = look
        for step in range(4):
            recorder.snapshot(step)
            recorder.log({"step": step})
            assert len(open_run(tmp_path / "run").scalars) == step + 1
    assert sorted(seen) == [0, 1, 2, 3]


DYNPROBE = Path(inject.__file__).parent.parent
# What would run code that came with data: a keyword and the value that makes it dangerous, and names that unpickle.
DANGEROUS = {"trust_remote_code": True, "weights_only": False, "allow_pickle": True, "allow_unsafe": True}
UNPICKLING = {"pickle", "cPickle", "dill", "joblib.load", "torch.load", "cloudpickle", "marshal", "shelve"}


def dangers(source: str) -> list[str]:
    """Calls in a program that would run what a stranger's file says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg in DANGEROUS:
            if not (isinstance(node.value, ast.Constant) and node.value.value is not DANGEROUS[node.arg]):
                found.append(f"{node.arg}={ast.unparse(node.value)}")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [f"imports {name}" for name in names if name.split(".")[0] in UNPICKLING]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {*UNPICKLING, "eval", "exec", "__import__"}:
            found.append(f"calls {ast.unparse(node.func)}")
    return found


def test_nothing_that_comes_with_data_is_run_by_default() -> None:
    files = sorted(DYNPROBE.rglob("*.py"))
    assert len(files) > 50
    found = {str(file.relative_to(DYNPROBE)): dangers(file.read_text(encoding="utf-8")) for file in files}
    assert {name: words for name, words in found.items() if words} == {}
    # In capture, transformers is told so and never asks on the terminal whether to run a model's own code.
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in (DYNPROBE / "capture").glob("*.py")]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    loading = [call for call in calls if ast.unparse(call.func).startswith(("transformers.Auto", "kind.from_pre"))]
    assert len(loading) >= 4
    assert [
        ast.unparse(call) for call in loading if "trust_remote_code" not in {word.arg for word in call.keywords}
    ] == []


@pytest.mark.parametrize(
    "source",
    [
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=asked)",
        "torch.load(x, weights_only=False)",
        "torch.load(x)",
        "np.load(x, allow_pickle=True)",
        "import pickle",
        "from dill import loads",
        "eval(x)",
    ],
)
def test_the_search_for_dangers_finds_them(source: str) -> None:
    assert dangers(source)


class Mine:
    """Unpickling this makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (self.path,))


@pytest.fixture
def trap(saved_model: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A model folder with code of its own and pickled weights, and the folder that either would make when it is run."""
    sprung = tmp_path / "sprung"
    config = json.loads((saved_model / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    config["model_type"] = "own-and-unknown"
    config["architectures"] = ["OwnModel"]
    (saved_model / "config.json").write_text(json.dumps(config))
    (saved_model / "own.py").write_text(f"import os\nos.mkdir({str(sprung)!r})\n")
    tokenizer = json.loads((saved_model / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": ["own.OwnTokenizer", None]}
    tokenizer["tokenizer_class"] = "OwnTokenizer"
    (saved_model / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return saved_model, sprung


def test_a_model_folder_with_code_of_its_own_is_not_run(trap: tuple[Path, Path], tmp_path: Path) -> None:
    folder, sprung = trap
    with pytest.raises(UsageError):
        load_model(str(folder))
    with pytest.raises((UsageError, CaptureError)):
        replay(folder, tmp_path / "run", probe_set=tiny_probe_set())
    with contextlib.suppress(UsageError):  # a known tokenizer of these files may be taken, which is not that code
        load_tokenizer(str(folder))
    assert not sprung.exists()


def test_pickled_weights_are_not_unpickled(saved_model: Path, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    (saved_model / "model.safetensors").unlink()
    torch.save({"embeddings.word_embeddings.weight": Mine(str(sprung))}, saved_model / "pytorch_model.bin")
    with pytest.raises(Exception):  # noqa: B017, PT011 - what is raised is not the point: nothing may have run
        load_model(str(saved_model))
    with pytest.raises((UsageError, CaptureError)):
        replay(saved_model, tmp_path / "run", probe_set=tiny_probe_set())
    assert not sprung.exists()
    torch.load(saved_model / "pytorch_model.bin", weights_only=False)
    assert sprung.exists(), "the trap works"
