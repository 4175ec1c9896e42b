"""The study of representational collapse on results whose findings are known beforehand."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from dynprobe.errors import DynprobeError

FOLDER = Path(__file__).parents[2] / "analyses" / "representational_collapse"
TASKS = ["supersense", "subj", "mr", "hyp"]


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("collapse_study", FOLDER / "study.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def probes(values: dict[str, float], *, start: float | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for task, value in values.items():
        found[task] = {"chance": 0.5, "n": 500, "end": {"first": [0.5, value], "mean": [0.5, 0.99]}}
        if start is not None:
            found[task] |= {"start": {"first": [0.5, start]}, "random": {"first": [0.5, 0.52]}}
    return found


def training(task: str, score: float, known: dict[str, Any], **curves: list[float]) -> dict[str, Any]:
    return {
        "setup": {
            "task": task,
            "train_examples": 1000,
            "max_steps": 100,
            "batch_size": 16,
            "learning_rate": 1e-3,
            "methods": {},
        },
        "scores": {"test_accuracy": score, "eval_accuracy": score},
        "majority": 0.1,
        "n_test": 500,
        "seconds": 1.0,
        "probes": known,
        "training": {"step": [1], "loss": [1.0], **curves},
    }


def chain(
    arm: str,
    seed: int,
    *,
    loss: float,
    cycles: int = 1,
    score: float = 0.7,
    model: str = "two-layer",
    tasks: list[str] = TASKS,
) -> dict[str, Any]:
    """The probe of every task falls by `loss` with each training, and a little by seed."""
    stages = []
    for number, task in enumerate(tasks * cycles):
        value = 0.8 - loss * (number + 1) + 0.001 * seed
        known = probes(dict.fromkeys(TASKS, value), start=0.8 if number == 0 else None)
        stages.append(training(task, score + 0.002 * seed, known))
    return {"model": model, "arm": arm, "seed": seed, "stages": stages, "versions": {"dynprobe": "1"}}


def noise(arm: str, seed: int, eps: float, *, share: float | None) -> dict[str, Any]:
    """Noise that makes the divergence 1 / `share` times as large as dropout alone does."""
    own = 0.2 / (share or 1.0) * (1 + 1e-4 * (seed - 1) * (eps > 0))
    curves = {"regulariser": [0.5 * own, 1.5 * own]} | ({} if share is None else {"dropout_share": [share + 0.1]})
    stage = training("supersense", 0.7 + 0.01 * seed, {}, **curves)
    stage["setup"] = {**stage["setup"], "methods": {"r3f": {"eps": eps}}}
    return {"model": "two-layer", "arm": arm, "seed": seed, "stages": [stage], "versions": {"dynprobe": "1"}}


def results(*, kept: float = 0.0, lost: float = 0.05) -> list[dict[str, Any]]:
    return [
        *(chain("standard", seed, loss=lost) for seed in range(3)),
        *(chain("r3f", seed, loss=kept) for seed in range(3)),
        *(chain("r4f", seed, loss=lost) for seed in range(3)),
        *(chain("standard-cycles", seed, loss=lost / 3, cycles=3) for seed in range(3)),
        *(chain("r4f-cycles", seed, loss=kept / 3, cycles=3) for seed in range(3)),
        *(noise("noise-0", seed, 0.0, share=1.0) for seed in range(3)),
        *(noise("noise-1e-5", seed, 1e-5, share=1.0) for seed in range(3)),
        *(noise("noise-1e-1", seed, 1e-1, share=0.2) for seed in range(3)),
        *(noise("noise-1e-5-without-dropout", seed, 1e-5, share=None) for seed in range(3)),
    ]


def test_what_holds_is_said_to_hold(study: ModuleType, tmp_path: Path) -> None:
    said = study.render(results(), tmp_path)
    held = said["holds"]
    assert (
        "**two-layer**: R3F leaves more of the other tasks to be probed than standard training does: 80.1 % against 75.1 %"
        in held
    )
    assert (
        "R3F keeps more of the first task along the chain than standard training does: 0.0 % against -15.0 %, +15.0 ["
        in held
    )
    assert "R4F retains more" in held
    assert "Standard training on one task lowers what can be probed of the others" in held
    assert "Standard training along the chain lowers what can be probed of its first task" in held
    assert "At the released noise scale R3F is two dropout passes: without the noise it has 100.00 % [99.9" in held
    assert "Without the noise of the released scale R3F scores the same" in held
    assert "R4F leaves more" in said["fails"]
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.png" for name in ("degradation", "layers", "retention", "noise")
    }
    assert "| r3f | 80.1 | 80.1 | 80.1 | 80.1 | +0.0" in said["degradation"]
    assert "| 1e-05 | as pretrained | 2.00e-01 | 100.00 [99.98, 100.02] | 110.0 |" in said["noise"]
    assert (
        "At the released scale, 1e-05, the noise makes a divergence of 2.0e-01 nats in a model without dropout"
        in said["noise"]
    )


def test_what_does_not_hold_is_not(study: ModuleType, tmp_path: Path) -> None:
    said = study.render(results(kept=0.05, lost=0.0), tmp_path)
    assert "R3F keeps more of the first task along the chain" in said["fails"]
    assert "Standard training along the chain lowers" in said["fails"]
    assert "| retained within 2 points |" in said["degradation"]


def test_noise_that_matters_is_told(study: ModuleType, tmp_path: Path) -> None:
    changed = [r for r in results() if r["arm"] != "noise-1e-5"]
    changed += [noise("noise-1e-5", seed, 1e-5, share=0.4) for seed in range(3)]
    assert "R3F is two dropout passes: without the noise it has 40.00 % [" in study.render(changed, tmp_path)["fails"]


def test_models_stand_apart(study: ModuleType, tmp_path: Path) -> None:
    other = [chain(arm, seed, loss=0.0, model="large") for arm in ("standard", "r3f") for seed in range(2)]
    said = study.render([*results(), *other], tmp_path)
    assert "**large**: Standard training along the chain lowers" in said["fails"]
    assert "**two-layer**: Standard training along the chain lowers" in said["holds"]
    assert all(said[place].count("**large**") == 1 for place in ("scores", "generalisation", "degradation"))
    assert "**large**" not in said["retention"] + said["noise"]
    verdicts = {claim: verdict for claim, _, verdict in study.summary([*results(), *other])}
    assert verdicts["R3F leaves more of the other tasks to be probed than standard training does"] == (
        "**holds here**: two-layer<br>**does not hold here**: large"
    )


def test_every_task_trained_on_has_a_row(study: ModuleType, tmp_path: Path) -> None:
    assert study.render(results(), tmp_path)["matrix"] == "Not measured."
    single = [chain("standard-on-mr", seed, loss=0.1, tasks=["mr"]) for seed in range(3)]
    rows = study.render([*results(), *single], tmp_path)["matrix"].splitlines()
    assert rows[2] == "| trained | seeds | supersense [95 %] | subj [95 %] | mr [95 %] | hyp [95 %] |"
    assert [row.split(" | ")[:2] for row in rows[4:]] == [
        ["| standard, on supersense", "3"],
        ["| standard, on mr", "3"],
    ]
    assert rows[5].count("-9.9 [") == 4


def test_tasks_that_could_not_be_probed_are_named(study: ModuleType, tmp_path: Path) -> None:
    made = results()
    refused = {"status": "undefined", "reason": "all training examples have the same label"}
    for result in made:
        if result["stages"][0]["probes"]:
            result["stages"][0]["probes"]["shift"] = refused
    words = "(shift could not be probed: all training examples have the same label)"
    assert study.render(made, tmp_path)["probed"] == f"supersense, subj, mr, hyp {words}"
    for result in made:
        for stage in result["stages"]:
            if stage["probes"]:
                stage["probes"]["mr"] = refused
    with pytest.raises(
        DynprobeError, match="every task of the chain must be probed; got none of mr: all training examples"
    ):
        study.render(made, tmp_path)


def test_each_task_is_read_before_it_is_trained_on(study: ModuleType) -> None:
    (found,) = study.chains_of([chain("standard-cycles", 0, loss=0.01, cycles=3)], cycles=2).values()
    table = study.retention(found[0])
    assert table.shape == (3, 4)
    assert table.ravel() == pytest.approx([0.8 - 0.01 * n for n in range(12)])
    assert np.allclose(study.source_probes(found[0])[:2], [0.79, 0.78])


def test_parts_that_were_not_run_are_said_to_be_missing(study: ModuleType, tmp_path: Path) -> None:
    said = study.render([r for r in results() if r["arm"] in ("standard", "r3f")], tmp_path)
    assert said["noise"] == "The grid of noise and dropout was not run."
    assert said["retention"] == "No chain with cycles was run."
