"""The page on few training examples, from results that were made up: what it says follows from them."""

import importlib.util
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from dynprobe.experiments.rendering import fill
from dynprobe.experiments.stability import arms_of, cells_by_arm, moved
from dynprobe.experiments.statements import FAILS, HOLDS, OPEN, Statement, judge

FOLDER = Path(__file__).parents[2] / "analyses" / "few_sample_stability"
# Mean score, training loss at the end, and how far the blocks moved.
ARMS = {
    "adam": (0.70, 0.5, 0.2),
    "bert-adam": (0.40, 2.2, 0.9),
    "adam-times-r": (0.40, 2.2, 0.9),
    "bert-adam-over-r": (0.70, 0.5, 0.2),
    "adam-steady": (0.60, 1.0, 0.4),
    "reinit-1": (0.80, 0.3, 0.1),
    "steps-2x": (0.75, 0.1, 0.3),
    "mixout": (0.70, 0.5, 0.2),
    "pull": (0.70, 0.5, 0.2),
    "weight-decay": (0.70, 0.5, 0.2),
    "intermediate": (0.72, 0.5, 0.2),
}


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("study_few_sample_stability", FOLDER / "study.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stage(arm: str, seed: int, noise: float) -> dict[str, Any]:
    mean, loss, far = ARMS[arm]
    steps = 120 if arm == "steps-2x" else 60
    spread = 3.0 if arm in ("bert-adam", "adam-times-r") else 1.0
    score = round(500 * (mean + spread * noise)) / 500
    at = np.linspace(0, 1, 21)[1:]
    curve = [round(float(math.log(10) + (loss - math.log(10)) * min(1.0, 2 * x) + noise), 4) for x in at]
    curve[0] += 1e-4 * (arm == "weight-decay")
    setup = {
        "task": "supersense", "train_examples": 320, "max_steps": steps, "batch_size": 16, "learning_rate": 1e-3,
        "warmup_ratio": 0.1, "weight_decay": 0.01 * (arm == "weight-decay"), "methods": {"pull": {}} if arm == "pull" else {},
    }  # fmt: skip
    return {
        "setup": setup, "n_classes": 10, "n_test": 500, "majority": 0.1, "seconds": 1.0,
        "scores": {"eval_accuracy": score, "test_accuracy": score, "kept_step": steps},
        "training": {"step": (at * steps).round().astype(int).tolist(), "loss": curve},
        "distances": {"block_1": far + noise, "block_2": far + noise, "embeddings": 0.1, "other": 1.0},
    }  # fmt: skip


def results_of(arms: dict[str, int], models: tuple[str, ...] = ("small",)) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    found = []
    for model in models:
        luck = rng.normal(scale=0.02, size=40)
        for arm, n in arms.items():
            own = luck + rng.normal(scale=0.004, size=40) * (arm not in ("adam-times-r", "bert-adam"))
            for seed in range(n):
                last = stage(arm, seed, float(own[seed]))
                stages = [stage("adam", seed, 0.0), last] if arm == "intermediate" else [last]
                found.append(
                    {"model": model, "arm": arm, "seed": seed, "stages": stages, "versions": {"dynprobe": "1"}}
                )
    return found


def judged(study: ModuleType, results: list[dict[str, Any]]) -> dict[str, Statement]:
    arms, weights = arms_of(results)["small"], moved(cells_by_arm(results, "small"))
    return {said.text: said for said in judge(study.statements(arms, weights))}


def verdict(said: dict[str, Statement], words: str) -> str:
    (found,) = (each for text, each in said.items() if words in text)
    return found.verdict


def test_statements_follow_from_the_results(study: ModuleType) -> None:
    said = judged(study, results_of(dict.fromkeys(ARMS, 20)))
    for words in (
        "the scores are lower than with Adam", "the scores vary more", "the last training loss is higher",
        "more runs never fit", "r(t) times as long scores lower", "r(t) times as long scores as BERTAdam",
        "divided by r(t) scores higher", "divided by r(t) scores as Adam", "1 block re-initialised the scores are higher",
        "the training loss of the first half is lower", "move less than pretrained ones",
        "2 times the steps the scores are higher",
    ):  # fmt: skip
        assert verdict(said, words) == HOLDS, words
    assert verdict(said, "larger throughout") == FAILS, "the scores lie further apart than the margin"
    assert verdict(said, "With Mixout Adam scores as without") == HOLDS, "the whole interval lies within the margin"
    assert verdict(said, "2 times the steps the scores vary less") == OPEN


def test_a_few_seeds_tell_little(study: ModuleType) -> None:
    said = judged(study, results_of(dict.fromkeys(ARMS, 2)))
    assert verdict(said, "the scores vary more") == OPEN
    assert verdict(said, "more runs never fit") == OPEN


@pytest.mark.parametrize("arms", [dict.fromkeys(ARMS, 6), {"adam": 3, "bert-adam": 2}, {"adam": 2}])
def test_the_page_is_made_of_whatever_arms_there_are(study: ModuleType, arms: dict[str, int], tmp_path: Path) -> None:
    values = study.render(results_of(arms, ("small", "large")), tmp_path)
    page = fill((FOLDER / "README.template.md").read_text(encoding="utf-8"), values)
    assert "nan" not in page
    assert all(f"figures/{path.name}" in page for path in tmp_path.iterdir())
    assert ("Not measured." in page) == ("mixout" not in arms)


def test_after_an_intermediate_task_nothing_is_paired(study: ModuleType, tmp_path: Path) -> None:
    page = study.render(results_of({"adam": 6, "intermediate": 6}), tmp_path)
    (row,) = (line for line in page["beside"].splitlines() if "intermediate" in line)
    assert row.startswith("| intermediate task | – | – | +")


@pytest.mark.slow
def test_weight_decay_that_does_nothing_is_seen(study: ModuleType, tmp_path: Path) -> None:
    arms = {"adam": 3, "weight-decay": 3}
    results = results_of(arms)
    assert "differs from that of Adam with 3 of 3 seeds" in study.render(results, tmp_path)["decay"]
    losses = {cell["seed"]: cell["stages"][0]["training"] for cell in results if cell["arm"] == "adam"}
    for cell in results:
        cell["stages"][0]["training"] = losses[cell["seed"]]
    assert "differs from that of Adam with 0 of 3 seeds" in study.render(results, tmp_path)["decay"]
