"""Linear probes along chains of trainings, read from the results of one model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dynprobe.experiments.over_seeds import SHARES, OverSeeds
from dynprobe.experiments.results import Results

KIND = "first"  # the [CLS] vector, as in the paper
ON = "-on-"  # between method and task in the name of an arm with one training


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
        return float(self.layers(stage, task)[-1])

    def layers(self, stage: int, task: str) -> np.ndarray:
        """(n_layers + 1,) accuracy of the probe of a task on each layer, embeddings first; stages as in :meth:`probe`."""
        found = self.stages[max(stage, 0)]["probes"][task]["start" if stage < 0 else "end"]
        return np.asarray(found[KIND], dtype=float)

    def start(self, task: str) -> float:
        """Accuracy of the probe of a task on the pretrained encoder."""
        return self.probe(-1, task)

    def random(self, task: str) -> float:
        """Accuracy of the probe of a task on the same architecture with random weights; NaN where it was not measured."""
        found = self.stages[0]["probes"][task].get("random")
        return float(found[KIND][-1]) if found else float("nan")


Measure = Callable[[Chain], float]


def chains_of(results: Results, *, cycles: int) -> dict[str, list[Chain]]:
    """The chains with probes, by arm: those that visit a task once, or those that visit each at least `cycles` times."""
    found: dict[str, list[Chain]] = {}
    for result in results:
        tasks = [stage["setup"]["task"] for stage in result["stages"]]
        visits = min(tasks.count(task) for task in tasks)
        if len(tasks) > 1 and (visits == 1 if cycles == 1 else visits >= cycles):
            found.setdefault(result["arm"], []).append(Chain(result["arm"], result["seed"], result["stages"]))
    return found


def first_trainings(results: Results) -> dict[str, dict[str, list[Chain]]]:
    """What was trained on once and then probed: method, and task, to its chains, each cut after its first training."""
    found: dict[str, dict[str, list[Chain]]] = {}
    for result in results:
        if "probes" in result["stages"][0] and visits_once(result):
            arm, chain = result["arm"], Chain(result["arm"], result["seed"], result["stages"][:1])
            found.setdefault(arm.partition(ON)[0], {}).setdefault(chain.tasks[0], []).append(chain)
    return {method: by_task for method, by_task in found.items() if len(by_task) > 1}


def visits_once(result: Mapping[str, Any]) -> bool:
    """Whether no task is trained on twice."""
    tasks = [stage["setup"]["task"] for stage in result["stages"]]
    return len(tasks) == len(set(tasks))


def other_tasks(chain: Chain) -> list[str]:
    """Probe tasks that the first training is not on."""
    return [task for task in chain.probed if task != chain.tasks[0]]


def after_first(chain: Chain, *, at_start: bool = False) -> float:
    """Mean probe of the other tasks after the first training, or on the pretrained encoder."""
    return float(np.mean([chain.probe(-1 if at_start else 0, task) for task in other_tasks(chain)]))


def others_by_layer(chain: Chain, stage: int) -> np.ndarray:
    """(n_layers + 1,) the same of every layer, after any training."""
    return np.mean([chain.layers(stage, task) for task in other_tasks(chain)], axis=0)


def source_probes(chain: Chain) -> np.ndarray:
    """(n_trainings,) probe of the first task after each training."""
    return np.array([chain.probe(stage, chain.tasks[0]) for stage in range(len(chain.tasks))])


def source_change(chain: Chain) -> float:
    """Change of the probe of the first task, from the first training to the last."""
    probes = source_probes(chain)
    return float(probes[-1] - probes[0])


def retention(chain: Chain) -> np.ndarray:
    """(n_cycles, n_tasks) probe of each task immediately before it is trained on."""
    n_tasks = len(dict.fromkeys(chain.tasks))
    before = [chain.probe(stage - 1, task) for stage, task in enumerate(chain.tasks)]
    return np.array(before).reshape(-1, n_tasks)


def by_seed(chains: Sequence[Chain], measure: Measure) -> OverSeeds:
    """What is measured of each chain, a share of the test examples of a probe."""
    values = {chain.seed: float(measure(chain)) for chain in chains}
    return OverSeeds(values=values, resolution=1 / chains[0].n_probe, unit=SHARES)
