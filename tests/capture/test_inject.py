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


def test_an_unmodified_script_is_captured_and_ends_as_before(tmp_path: Path) -> None:
    import subprocess

    assert call(tmp_path, "5") == 5, "the exit code is the script's own"
    assert open_run(tmp_path / "run").steps == (0, 1, 2, 4, 6) or open_run(tmp_path / "run").steps[-1] == 6
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
