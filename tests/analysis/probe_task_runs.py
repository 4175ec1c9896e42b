"""Runs that hold probe tasks, in memory: what the probe suite asks of a run, with vectors that a test controls."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dynprobe.probe_set import ProbeSet


def examples(labels, *, first=0, texts=None) -> ProbeSet:
    """Labelled examples, each with tokens of its own, numbered from `first`."""
    n = 40 if labels is None else len(labels)
    ids = np.stack([np.arange(n) + first + 5, np.arange(n) % 7 + 5], axis=1)
    return ProbeSet(
        inputs={"input_ids": ids},
        real={"model": np.ones_like(ids, dtype=bool)},
        special={"model": np.zeros_like(ids, dtype=bool)},
        labels=labels,
        texts=texts,
    )


@dataclass
class FakeSnapshot:
    vectors: Mapping[tuple[str, str, int], np.ndarray]

    def pooled_kinds(self, stack="model", *, probe):
        kinds = {kind for part, kind, _ in self.vectors if part == probe and stack == "model"}
        return tuple(kind for kind in ("first", "last", "mean") if kind in kinds)

    def pooled_layers(self, kind, stack="model", *, probe):
        return tuple(sorted(layer for part, own, layer in self.vectors if (part, own) == (probe, kind)))

    def pooled(self, kind, layer, stack="model", *, probe):
        return self.vectors[probe, kind, layer]

    def close(self):
        pass


@dataclass(eq=False)
class FakeRun:
    """`snapshots[step]` holds vectors by (``"NAME.train"``, kind, layer); so does `random`, or it is empty."""

    snapshots: Mapping[int, FakeSnapshot]
    tasks: Mapping[str, tuple[ProbeSet, ProbeSet]]
    random: Mapping[tuple[str, str, int], np.ndarray] = field(default_factory=dict)
    path: Path = Path("run")
    stacks: tuple[str, ...] = ("model",)

    @property
    def name(self):
        return self.path.name

    @property
    def steps(self):
        return tuple(sorted(self.snapshots))

    @property
    def probe_tasks(self):
        return tuple(self.tasks)

    def probe_task(self, name, split):
        return self.tasks[name][("train", "test").index(split)]

    def random_encoder(self, name, split, kind, layer, stack="model"):
        return self.random.get((f"{name}.{split}", kind, layer))

    def __getitem__(self, step):
        return self.snapshots[step]


def fake_run(
    name="run",
    *,
    strengths=((0.0, 2.0), (0.0, 0.2)),
    n_train=120,
    n_test=200,
    n_classes=2,
    d=6,
    seed=0,
    steps=(0, 50),
    kinds=("first",),
    random=True,
    texts=None,
) -> FakeRun:
    """A run with the task "subj"; `strengths[step][layer]` says how far apart its classes lie at each snapshot and layer."""
    rng = np.random.default_rng(seed)
    labels = {"train": np.arange(n_train) % n_classes, "test": np.arange(n_test) % n_classes}
    centres = rng.normal(size=(n_classes, d))
    centres /= np.linalg.norm(centres[0] - centres[1])
    noise = {(part, kind): rng.normal(size=(len(own), d)) for part, own in labels.items() for kind in kinds}

    def vectors(strength: float) -> dict:
        return {key: strength * centres[labels[key[0]]] + value for key, value in noise.items()}

    snapshots = {
        step: FakeSnapshot(
            {
                (f"subj.{part}", kind, layer): array
                for layer, strength in enumerate(own)
                for (part, kind), array in vectors(strength).items()
            }
        )
        for step, own in zip(steps, strengths, strict=True)
    }
    layers = range(len(strengths[0]))
    chance = {(f"subj.{part}", kind, layer): a for layer in layers for (part, kind), a in vectors(0.0).items()}
    tasks = {
        "subj": (
            examples(labels["train"], texts=None if texts is None else texts["train"]),
            examples(labels["test"], first=1000, texts=None if texts is None else texts["test"]),
        )
    }
    return FakeRun(snapshots, tasks, chance if random else {}, Path(name))
