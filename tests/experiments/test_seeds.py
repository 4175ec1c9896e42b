"""The demo's experiment: two seeds, captured, compared, reported."""

import json
from pathlib import Path

import pytest

from dynprobe.errors import UsageError
from dynprobe.experiments.seeds import compare_seeds
from dynprobe.run import open_run


@pytest.mark.slow
def test_two_seeds_are_trained_compared_and_reported(saved_model: Path, tmp_path: Path) -> None:
    shown: list[tuple[int, int, str]] = []
    report, runs = compare_seeds(
        tmp_path / "out",
        model=str(saved_model),
        task="supersense",
        seeds=(1, 2),
        max_steps=3,
        progress=lambda *state: shown.append(state),
    )
    assert "<html" in report.read_text(encoding="utf-8")
    assert json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["format"] == 1
    a, b = (open_run(run) for run in runs)
    assert a.steps == b.steps == (0, 1, 2, 3)
    assert a.probe_set.fingerprint == b.probe_set.fingerprint, "two seeds choose the same probe examples"
    assert (a.manifest["training"]["seed"], b.manifest["training"]["seed"]) == (1, 2)
    assert a.manifest["training"]["task"] == "supersense"
    assert (3, 6, "training, seed 1") in shown
    with pytest.raises(UsageError, match="must be new; got one that exists"):
        compare_seeds(tmp_path / "out", model=str(saved_model), task="supersense", seeds=(1, 2), max_steps=3)


def test_one_seed_twice_is_no_comparison(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two different numbers"):
        compare_seeds(tmp_path, model="m", task="supersense", seeds=(1, 1), max_steps=3)
