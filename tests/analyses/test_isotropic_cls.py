"""The study of isotropy on results whose findings are known beforehand."""

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from dynprobe.experiments.isotropy_readings import cold_start, correlation_map, isotropy_table
from dynprobe.experiments.rendering import fill
from dynprobe.experiments.statements import FAILS, HOLDS, OPEN, judge

FOLDER = Path(__file__).parents[2] / "analyses" / "isotropic_cls"
ARMS = ("none", "batch-norm", "isobn", "isobn-released")
N_TEST = 1000


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("isotropic_cls_study", FOLDER / "study.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cloud(seed: int, first: float) -> np.ndarray:
    """Vectors whose first direction is `first` times as long as the others, on average."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(40, 6)) * [first, 1, 1, 1, 1, 1]


def snapshot(given: np.ndarray, returned: np.ndarray, *, share: float) -> dict[str, Any]:
    tables = isotropy_table(given), isotropy_table(returned)
    layers = {"0": None, "1": tables[0], "2": tables[1]}
    change = {"largest": 1e-4, "of_rounding": share}
    return {"layers": layers, "pooler_output": tables[0], "classifier_input": tables[1], "correlation_change": change}


@cache
def statistics(seed: int) -> dict[str, Any]:
    return cold_start(cloud(seed, 1.0), batch_size=8, seed=seed, n_steps=20)


def cell(arm: str, seed: int, *, accuracy: float, best: int, share: float = 0.05) -> dict[str, Any]:
    start = cloud(seed, 1.0)
    given, returned = cloud(seed + 100, 6.0), cloud(seed + 100, {"batch-norm": 3.0, "isobn": 1.5}.get(arm, 6.0))
    loss = [2.0, 1.5, 1.0, 0.8]
    stage: dict[str, Any] = {
        "setup": {
            "task": "supersense", "train_examples": 64, "max_steps": 8, "batch_size": 8, "learning_rate": 5e-4, "methods": {},
        },
        "scores": {"test_accuracy": accuracy, "eval_accuracy": accuracy, "kept_step": 8.0},
        "seconds": 1.0, "n_classes": 10, "n_test": N_TEST, "majority": 0.1,
        "evaluations": {"step": [2, 4, 6, 8], "eval_accuracy": [0.5 + 0.1 * (step == best) for step in (2, 4, 6, 8)]},
        "training": {"step": [2, 4, 6, 8], "loss": [value + 0.1 * (arm == "isobn-released") for value in loss]},
    }  # fmt: skip
    if arm != "isobn-released":
        stage["isotropy"] = {
            "steps": {"0": snapshot(start, start, share=0.0), "8": snapshot(given, returned, share=share)},
            "cold_start": statistics(seed % 2),
        }
        if seed == 0:
            stage["isotropy"]["maps"] = {"0": correlation_map(start), "8": correlation_map(given)}
    return {"model": "small", "arm": arm, "seed": seed, "stages": [stage], "versions": {"dynprobe": "0"}}


def without_drawing(path: Path, panels: list[Any], **_: Any) -> Path:
    """Nothing; drawing takes most of the time."""
    assert panels
    return path


def results(*, arms: tuple[str, ...] = ARMS, n_seeds: int = 6, **more: Any) -> list[dict[str, Any]]:
    """Trainings in which IsoBN makes the vector isotropic, gains five points, is early, and its cold start costs nothing."""
    rng = np.random.default_rng(0)
    luck = rng.normal(scale=0.002, size=(len(ARMS), n_seeds))
    gains = {"isobn": 0.05, "isobn-released": 0.05}
    return [
        cell(
            arm,
            seed,
            accuracy=round(N_TEST * (0.7 + gains.get(arm, 0.0) + luck[ARMS.index(arm), seed])) / N_TEST,
            best={"isobn": 2 + 2 * (seed == 1)}.get(arm, 8),
            **more,
        )
        for arm in arms
        for seed in range(n_seeds)
    ]


def test_each_claim_gets_the_verdict_that_the_results_were_made_for(study: ModuleType) -> None:
    verdicts = {found.text: found.verdict for found in judge(study.claims(results(), "small"))}
    wanted = {
        "EV₁ falls from before the IsoBN layer to after it": HOLDS,
        "EV₁ is lower with IsoBN than without a norm": HOLDS,
        "EV₁ is lower with IsoBN than with batch norm": HOLDS,
        "Fine-tuning without a norm raises EV₁": HOLDS,
        "Accuracy is higher with IsoBN than without a norm": HOLDS,
        "Accuracy is higher with IsoBN than with batch norm": HOLDS,
        "The cold start of the released code costs accuracy": FAILS,
        "The best validation accuracy is reached in fewer steps with IsoBN than without a norm": HOLDS,
    }
    assert {text: verdicts[text] for text in wanted} == wanted
    assert len(verdicts) == 13
    mean_correlation = next(text for text in verdicts if "|ρ|" in text)
    assert verdicts[mean_correlation] == OPEN, "the same cloud, but for the sizes of its dimensions"


def test_the_page_says_it(study: ModuleType, tmp_path: Path) -> None:
    made = results()
    page = fill((FOLDER / "README.template.md").read_text(encoding="utf-8"), study.render(made, tmp_path))
    assert (
        "* **small**: The IsoBN layer leaves every correlation between dimensions as it is: of all pairs of 6" in page
    )
    held, rest = page.split("## What does not hold here")
    assert "**small**: EV₁ is lower with IsoBN than with batch norm: " in held
    assert "**small**: The cold start of the released code costs accuracy: " in rest.split("## What cannot be told")[0]
    mean = np.mean([r["stages"][0]["scores"]["test_accuracy"] for r in made if r["arm"] == "isobn"])
    assert f"| isobn | 6 | {100 * mean:.1f} |" in page
    assert "% of the correlations are saturated after the first batch" in page
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.png" for name in ("cold-start", "correlations", "explained-variance", "layers", "standard-deviations")
    }
    assert all(f"figures/{path.name}" in page for path in tmp_path.iterdir())


def test_a_layer_that_moves_correlations_is_found_out(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "save_panels", without_drawing)
    said = study.render(results(share=1.5), tmp_path)
    assert "leaves every correlation" not in said["holds"]
    assert said["fails"].count("leaves every correlation") == 2


@pytest.mark.parametrize("arms", [("none",), ("none", "isobn")])
def test_fewer_arms_and_seeds_give_fewer_claims(
    study: ModuleType, tmp_path: Path, arms: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "isobn" in arms:  # with one arm, nothing may be missing for the figures either
        monkeypatch.setattr(study, "save_panels", without_drawing)
    few = results(arms=arms, n_seeds=2)
    found = study.claims(few, "small")
    assert len(found) == (8 if "isobn" in arms else 1)
    said = study.render(few, tmp_path)
    assert said["n_cells"] == str(2 * len(arms))
    assert "small has 2 seeds" in said["limits"]


def test_steps_to_best_is_the_first_of_the_best(study: ModuleType) -> None:
    evaluations = {"step": [10, 20, 30], "eval_accuracy": [0.5, 0.7, 0.7]}
    assert study.steps_to_best({"evaluations": evaluations}) == 20.0
