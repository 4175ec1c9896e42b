"""Programs that know nothing of capture: `dynprobe capture -- CMD`."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from dynprobe.capture.inject import InjectedOptions, run_with_capture
from dynprobe.errors import NothingCapturedError, UsageError
from dynprobe.run import open_run

SCRIPT = """
import hashlib, sys
import numpy as np, torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
torch.manual_seed(0)
model = BertForSequenceClassification(BertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2,
    num_attention_heads=4, intermediate_size=64, num_labels=3, max_position_embeddings=32))
rng = np.random.default_rng(0)
data = [{"input_ids": rng.integers(5, 100, 9).tolist(), "labels": i % 3} for i in range(40)]
args = TrainingArguments(output_dir=sys.argv[1], max_steps=6, per_device_train_batch_size=8, report_to=[], use_cpu=True,
    disable_tqdm=True, save_strategy="no")
trainer = Trainer(model, args, train_dataset=data, eval_dataset=data[:20])
if "untrained" not in sys.argv:
    trainer.train()
digest = hashlib.sha256(b"".join(v.numpy().tobytes() for v in model.state_dict().values())).hexdigest()
open(sys.argv[1] + ".sha", "w").write(digest)
sys.exit(int(sys.argv[2]))
"""


def call(tmp_path: Path, *arguments: str, run: str = "run") -> int:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, str(script), str(tmp_path / "out"), *arguments]
    return run_with_capture(command, InjectedOptions(str(tmp_path / run)), tmp_path / f"status-{run}")


@pytest.mark.slow
def test_an_unmodified_script_is_captured_and_ends_as_before(tmp_path: Path) -> None:
    import subprocess

    assert call(tmp_path, "5") == 5, "the exit code is the script's own"
    assert open_run(tmp_path / "run").steps == (0, 1, 2, 3, 4, 5, 6)
    captured = (tmp_path / "out.sha").read_text()
    subprocess.run([sys.executable, str(tmp_path / "train.py"), str(tmp_path / "out"), "0"], check=True)
    assert (tmp_path / "out.sha").read_text() == captured, "the same bits as without capture"
    with pytest.raises(UsageError, match="must be new; got one that holds a run"):
        call(tmp_path, "0")


@pytest.mark.slow
def test_a_trainer_that_never_trains(tmp_path: Path) -> None:
    with pytest.raises(NothingCapturedError, match=r"never called its train\(\)"):
        call(tmp_path, "0", "untrained")


def test_python_that_ignores_its_environment(tmp_path: Path) -> None:
    with pytest.raises(NothingCapturedError, match="-I or -E ignores PYTHONPATH"):
        run_with_capture([sys.executable, "-I", "-c", "pass"], InjectedOptions(str(tmp_path / "run")), tmp_path / "s")


def test_the_sitecustomize_that_ours_hides_still_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.hidden_ran = True", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code = "import builtins, sys; sys.exit(0 if builtins.hidden_ran else 9)"
    with pytest.raises(NothingCapturedError):  # and not exit code 1 or 9
        run_with_capture([sys.executable, "-c", code], InjectedOptions(str(tmp_path / "run")), tmp_path / "s")


def test_a_command_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must be a program that can be started; got 'no-such-program'"):
        run_with_capture(["no-such-program"], InjectedOptions(str(tmp_path / "run")), tmp_path / "s")


def test_signals_reach_the_command_and_its_end_is_reported(tmp_path: Path) -> None:
    def terminate() -> None:
        time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=terminate).start()
    code = run_with_capture(
        [sys.executable, "-c", "import time; time.sleep(30)"], InjectedOptions(str(tmp_path / "run")), tmp_path / "s"
    )
    assert code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("raise SystemExit(3)", 3),
        ("raise ValueError", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL),
    ],
)
def test_the_exit_code_of_the_command_wins(code: str, expected: int, tmp_path: Path) -> None:
    options = InjectedOptions(str(tmp_path / "run"))
    assert run_with_capture([sys.executable, "-c", code], options, tmp_path / "s") == expected


def test_a_command_without_a_trainer(tmp_path: Path) -> None:
    options = InjectedOptions(str(tmp_path / "run"))
    for command in ([sys.executable, "-c", "import json"], ["true"]):
        with pytest.raises(NothingCapturedError, match=f"no transformers Trainer was made by `{command[0]}") as error:
            run_with_capture(command, options, tmp_path / "s")
        assert error.value.exit_code == 4
    assert not (tmp_path / "run").exists()


def test_an_old_run_is_no_capture(tmp_path: Path, run_a: Path) -> None:
    """Neither with --resume nor with --force does what was there before count; and nothing of it is lost."""
    for existing in ("resume", "replace"):
        with pytest.raises(NothingCapturedError, match="no transformers Trainer was made"):
            run_with_capture(["true"], InjectedOptions(str(run_a), existing=existing), tmp_path / "s")
    assert open_run(run_a).steps == (0, 2, 6)


def test_reasons(tmp_path: Path) -> None:
    """What the program's processes reported decides what is said; half a line of a killed one is passed over."""
    status = tmp_path / "s"
    options = InjectedOptions(str(tmp_path / "run"))
    status.write_text(
        '{"event": "trainer"}\n{"event": "fault", "reason": "no probe"}\n{"event": "tra', encoding="utf-8"
    )
    with pytest.raises(NothingCapturedError, match="nothing was captured: no probe"):
        run_with_capture(["true"], options, status)
    status.write_text('{"event": "trainer"}\n', encoding="utf-8")
    with pytest.raises(NothingCapturedError, match="trained nothing new with it"):
        run_with_capture(["true"], options, status)


def test_the_environment_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own modules are found, its arguments and working directory are its own, and no heavy module is loaded for it."""
    (tmp_path / "own_module.py").write_text("value = 7", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    code = (
        "import os, sys, own_module\n"
        "heavy = {'torch', 'transformers', 'numpy', 'h5py', 'dynprobe'} & set(sys.modules)\n"
        f"ok = own_module.value == 7 and not heavy and os.getcwd() == {str(tmp_path)!r} and sys.argv[1:] == ['--x', 'y z']\n"
        "sys.exit(5 if ok else 6)"
    )
    options = InjectedOptions(str(tmp_path / "run"))
    assert run_with_capture([sys.executable, "-c", code, "--x", "y z"], options, tmp_path / "s") == 5


def test_a_hidden_sitecustomize_that_fails_fails_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python says so and goes on; so does a captured Python."""
    (tmp_path / "sitecustomize.py").write_text("raise RuntimeError('its own fault')", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    options = InjectedOptions(str(tmp_path / "run"))
    assert run_with_capture([sys.executable, "-c", "raise SystemExit(5)"], options, tmp_path / "s") == 5


@pytest.mark.slow
def test_a_fault_inside_capture_does_not_change_how_the_program_ends(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "probes").write_text("a file where a folder of the run should be")
    assert call(tmp_path, "5") == 5
    with pytest.raises(NothingCapturedError, match=r"nothing was captured: "):
        call(tmp_path, "0")
    assert (tmp_path / "out.sha").is_file(), "the program went on to its end"


@pytest.mark.slow
def test_a_program_whose_python_cannot_load_capture_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "h5py.py").write_text("raise ImportError('No module named h5py')", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    with pytest.raises(NothingCapturedError, match=r"nothing was captured: No module named h5py \(.*python"):
        call(tmp_path, "0")


@pytest.mark.slow
def test_a_program_that_makes_errors_of_warnings(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    strict = "import warnings\nwarnings.simplefilter('error', UserWarning)\n"
    text = SCRIPT.replace("trainer.train()", f"{strict.replace(chr(10), chr(10) + '    ')}trainer.train()")
    script.write_text(text.replace(", eval_dataset=data[:20]", ""), encoding="utf-8")
    command = [sys.executable, str(script), str(tmp_path / "out"), "0"]
    assert run_with_capture(command, InjectedOptions(str(tmp_path / "run")), tmp_path / "s") == 0
    run = open_run(tmp_path / "run")
    assert run.steps[-1] == 6
    assert any("training data" in note for note in run.notes)


@pytest.mark.slow
def test_a_full_disk_ends_capture_and_not_training(tmp_path: Path) -> None:
    """The system itself refuses larger files from step 2 on; HDF5 must not take the process with it."""
    limited = (
        "import resource\nfrom transformers import TrainerCallback\n"
        "class Limit(TrainerCallback):\n"
        "    def on_step_begin(self, args, state, control, **kwargs):\n"
        "        if state.global_step == 2:\n"
        "            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "trainer.add_callback(Limit())\n"
        'if "untrained"'
    )
    script = tmp_path / "train.py"
    command = [sys.executable, str(script), str(tmp_path / "out"), "0"]
    script.write_text(SCRIPT.replace('if "untrained"', limited), encoding="utf-8")
    assert run_with_capture(command, InjectedOptions(str(tmp_path / "run")), tmp_path / "s") == 0
    captured = (tmp_path / "out.sha").read_text()
    run = open_run(tmp_path / "run")
    assert run.steps == (0, 1, 2)
    assert run[2].n_bytes > 50_000, "the limit is below the size of a snapshot"
    assert "switched off by a fault" in run.notes[-1]
    assert not list((tmp_path / "run" / "snapshots").glob("*.tmp"))
    script.write_text(SCRIPT, encoding="utf-8")
    assert call(tmp_path, "0", run="whole") == 0
    assert (tmp_path / "out.sha").read_text() == captured
