"""Probes along a chain of trainings, and the grid of noise and dropout, read from results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dynprobe.metrics import MeanDifference, paired_difference

KIND = "first"  # the [CLS] vector, as in the paper
SOURCE_POSITION = 0
NOISE = "noise-"
WITHOUT = "-without-dropout"

Results = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Chain:
    """One chain of trainings of one seed, with the accuracy of linear probes on the last layer after each training.

    Attributes
    ----------
    arm, seed
        Which.
    stages
        What was kept of each training.
    """

    arm: str
    seed: int
    stages: Sequence[Mapping[str, Any]]

    @cached_property
    def tasks(self) -> list[str]:
        """Task of each training, once for each cycle."""
        return [stage["setup"]["task"] for stage in self.stages]

    @property
    def probed(self) -> list[str]:
        """Probe tasks that could be probed."""
        return [task for task, found in self.stages[0]["probes"].items() if "status" not in found]

    @property
    def n_probe(self) -> int:
        """Test examples of a probe."""
        return int(min(self.stages[0]["probes"][task]["n"] for task in self.probed))

    @property
    def chance(self) -> dict[str, float]:
        """Share of the commonest class, by task."""
        return {task: self.stages[0]["probes"][task]["chance"] for task in self.probed}

    def probe(self, stage: int, task: str) -> float:
        """Accuracy of the probe of a task after a training, counted from 0; -1 is before the first."""
        return self.start(task) if stage < 0 else float(self.stages[stage]["probes"][task]["end"][KIND][-1])

    def start(self, task: str) -> float:
        """Accuracy of the probe of a task on the pretrained encoder."""
        return float(self.stages[0]["probes"][task]["start"][KIND][-1])

    def random(self, task: str) -> float:
        """Accuracy of the probe of a task on the same architecture with random weights; NaN where it was not measured."""
        found = self.stages[0]["probes"][task].get("random")
        return float(found[KIND][-1]) if found else float("nan")


def chains_of(results: Results, *, cycles: int) -> dict[str, list[Chain]]:
    """The chains with probes, by arm: those that visit a task once, or those that visit each at least `cycles` times."""
    found: dict[str, list[Chain]] = {}
    for result in results:
        tasks = [stage["setup"]["task"] for stage in result["stages"]]
        visits = min(tasks.count(task) for task in tasks)
        if len(tasks) > 1 and (visits == 1 if cycles == 1 else visits >= cycles):
            found.setdefault(result["arm"], []).append(Chain(result["arm"], result["seed"], result["stages"]))
    return found


def after_first(chain: Chain, *, at_start: bool = False) -> float:
    """Mean probe of the other tasks after the first training, or on the pretrained encoder."""
    others = [task for task in chain.probed if task != chain.tasks[0]]
    return float(np.mean([chain.probe(-1 if at_start else 0, task) for task in others]))


def source_probes(chain: Chain) -> np.ndarray:
    """(n_trainings,) probe of the first task after each training."""
    return np.array([chain.probe(stage, chain.tasks[SOURCE_POSITION]) for stage in range(len(chain.tasks))])


def source_change(chain: Chain) -> float:
    """Change of the probe of the first task, from the first training to the last."""
    probes = source_probes(chain)
    return float(probes[-1] - probes[0])


def retention(chain: Chain) -> np.ndarray:
    """(n_cycles, n_tasks) probe of each task immediately before it is trained on."""
    n_tasks = len(dict.fromkeys(chain.tasks))
    before = [chain.probe(stage - 1, task) for stage, task in enumerate(chain.tasks)]
    return np.array(before).reshape(-1, n_tasks)


@dataclass(frozen=True)
class NoiseRow:
    """One cell of the grid of noise and dropout.

    Attributes
    ----------
    noise
        Largest noise on a coordinate of a word embedding.
    with_dropout
        Whether the model has dropout.
    divergence
        Mean symmetric KL divergence between clean and noisy pass, in nats.
    share
        Part of it that dropout alone makes, less 1, over the seeds; ``None`` without dropout or with one seed.
    score
        Mean accuracy on the test split.
    gap
        Score minus that without noise (with dropout), or minus standard training's (without); ``None`` for that one itself.
    """

    noise: float
    with_dropout: bool
    divergence: float
    share: MeanDifference | None
    score: float
    gap: MeanDifference | None


def noise_rows(results: Results) -> list[NoiseRow]:
    """The grid of noise and dropout, as far as it was run."""
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        arms.setdefault(result["arm"], []).append(result)
    bases = {True: arms.get(f"{NOISE}0"), False: arms.get(f"standard{WITHOUT}")}
    rows = []
    for arm, own in arms.items():
        if not arm.startswith(NOISE):
            continue
        stages = [result["stages"][0] for result in own]
        with_dropout, base = not arm.endswith(WITHOUT), bases[not arm.endswith(WITHOUT)]
        rows.append(
            NoiseRow(
                noise=float(stages[0]["setup"]["methods"]["r3f"]["eps"]),
                with_dropout=with_dropout,
                divergence=float(np.mean([np.mean(stage["training"].get("regulariser", [0.0])) for stage in stages])),
                share=_share(stages) if with_dropout else None,
                score=float(np.mean([_score(result) for result in own])),
                gap=None if base is None or base is own else _gap(own, base, stages[0]["n_test"]),
            )
        )
    return sorted(rows, key=lambda row: (not row.with_dropout, row.noise))


def _share(stages: Sequence[Mapping[str, Any]]) -> MeanDifference | None:
    """How far the part that dropout makes is from all, over the seeds."""
    measured = [
        [share for share in stage["training"].get("dropout_share", []) if share is not None] for stage in stages
    ]
    means = np.array([np.mean(own) for own in measured if own])
    return paired_difference(means, np.ones_like(means)) if len(means) > 1 else None


def _gap(own: Results, base: Results, n_test: int) -> MeanDifference | None:
    scores = [{result["seed"]: _score(result) for result in group} for group in (own, base)]
    seeds = sorted(scores[0].keys() & scores[1].keys())
    if len(seeds) < 2:
        return None
    one, other = (np.array([score[seed] for seed in seeds]) for score in scores)
    return paired_difference(one, other, resolution=1 / n_test)


def _score(result: Mapping[str, Any]) -> float:
    return float(result["stages"][0]["scores"]["test_accuracy"])
