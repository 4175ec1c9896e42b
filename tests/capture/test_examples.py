"""The example programs run as they stand, on a tiny model, and are captured."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dynprobe

pytestmark = pytest.mark.slow

ROOT = Path(dynprobe.__file__).parents[1]
EXAMPLES = ROOT / "analyses" / "examples"


@pytest.mark.parametrize(
    ("file", "processes"), [("accelerate_loop.py", 1), ("accelerate_loop.py", 2), ("lightning_module.py", 1)]
)
def test_an_example(file: str, processes: int, saved_model: Path, tmp_path: Path) -> None:
    if "lightning" in file:
        pytest.importorskip("lightning.pytorch")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if processes == 2 else []
    asked = ["--model", saved_model, "--output", tmp_path / "run", "--steps", "3", "--batch-size", "4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, *launcher, EXAMPLES / file, *asked]
    subprocess.run([str(part) for part in command], check=True, cwd=tmp_path, env=environment, timeout=300)
    run = dynprobe.open_run(tmp_path / "run")
    assert run.steps == (0, 1, 2, 3)
    assert run[3].parameter_changes()
    assert run.probe_set.labels is not None
    assert run.manifest["training"]["task"] == "wic"
    assert run.manifest["training"]["num_processes"] == processes


def test_every_example_is_run() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == ["accelerate_loop.py", "lightning_module.py"]
