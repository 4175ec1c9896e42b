"""GLUE through a stand-in for the `datasets` library: no test reaches the hub."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dynprobe.errors import TaskDataError
from dynprobe.tasks import load_task
from dynprobe.tasks.glue import TASKS

Columns = dict[str, list[Any]]


class Part:
    """One split, with what the loader uses of a `datasets.Dataset`."""

    def __init__(self, columns: Columns, names: tuple[str, ...] | None) -> None:
        self.columns, self.column_names = columns, list(columns)
        self.features = {"label": SimpleNamespace(names=names) if names else SimpleNamespace()}

    def __getitem__(self, name: str) -> list[Any]:
        return self.columns[name]


def pairs(n: int, *, first: int = 0, n_classes: int = 2) -> Columns:
    rows = range(first, first + n)
    return {
        "sentence1": [f"premise {i}" for i in rows],
        "sentence2": [f"hypothesis {i}" for i in rows],
        "label": [i % n_classes for i in rows],
        "idx": list(rows),
    }


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch):
    """Install a `datasets` module that gives the splits it is told to, or fails as it is told to."""

    def put(
        splits: dict[str, Columns], *, names: tuple[str, ...] | None = None, error: Exception | None = None
    ) -> list:
        asked: list[tuple[str, str]] = []

        def load_dataset(place: str, task: str) -> dict[str, Part]:
            asked.append((place, task))
            if error:
                raise error
            return {split: Part(columns, names) for split, columns in splits.items()}

        module = ModuleType("datasets")
        module.load_dataset = load_dataset
        module.exceptions = SimpleNamespace(DatasetsError=DatasetsError)
        monkeypatch.setitem(sys.modules, "datasets", module)
        return asked

    return put


class DatasetsError(Exception):
    """Stands for the base of the library's own errors."""


RTE = ("entailment", "not_entailment")


def test_rte_has_the_names_of_its_classes_and_a_halved_validation_split(fake) -> None:
    asked = fake({"train": pairs(100), "validation": pairs(41, first=1000), "test": pairs(30, first=2000)}, names=RTE)
    task = load_task("glue/rte")
    assert asked == [("nyu-mll/glue", "rte")]
    assert (task.name, task.label_names, task.text_columns) == ("glue/rte", RTE, ("sentence1", "sentence2"))
    assert [len(split) for split in task.splits.values()] == [100, 21, 20]
    halves = [set(task[split].texts) for split in ("validation", "test")]
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == {(f"premise {i}", f"hypothesis {i}") for i in range(1000, 1041)}
    for split in task.splits.values():  # stratified, and each label with its text
        counts = np.bincount(split.labels)
        assert abs(int(counts[0]) - int(counts[1])) <= 1
        assert [int(texts[0].split()[1]) % 2 for texts in split.texts] == split.labels.tolist()


def test_the_halves_depend_on_the_content_alone(fake) -> None:
    columns = pairs(40, first=1000)
    fake({"train": pairs(20), "validation": columns}, names=RTE)
    plain = load_task("glue/rte")
    fake({"train": pairs(20), "validation": {name: cells[::-1] for name, cells in columns.items()}}, names=RTE)
    turned = load_task("glue/rte")
    for split in ("validation", "test"):
        assert plain[split].texts == turned[split].texts
        np.testing.assert_array_equal(plain[split].labels, turned[split].labels)
    assert plain["validation"].texts != tuple(zip(columns["sentence1"][:20], columns["sentence2"][:20], strict=True))


def test_no_text_is_in_two_splits(fake) -> None:
    twice = {name: [*cells, *cells[:5]] for name, cells in pairs(20, first=1000).items()}
    overlapping = {name: [*cells, *pairs(3, first=1000)[name]] for name, cells in pairs(30).items()}
    fake({"train": overlapping, "validation": twice}, names=RTE)
    task = load_task("glue/mrpc")
    assert [len(split) for split in task.splits.values()] == [30, 10, 10]
    everything = [texts for split in task.splits.values() for texts in split.texts]
    assert len(set(everything)) == len(everything)


def test_mnli_is_reported_on_the_matched_split(fake) -> None:
    splits = {
        "train": pairs(30),
        "validation_matched": pairs(20, first=100),
        "validation_mismatched": pairs(20, first=500),
    }
    renamed = {
        name: {"premise": columns["sentence1"], "hypothesis": columns["sentence2"], "label": columns["label"]}
        for name, columns in splits.items()
    }
    fake(renamed, names=("entailment", "neutral"))
    task = load_task("glue/mnli")
    assert {texts[0] for split in ("validation", "test") for texts in task[split].texts} == {
        f"premise {i}" for i in range(100, 120)
    }


def test_stsb_is_a_regression_and_each_half_has_as_many_scores_of_each_fifth(fake) -> None:
    def graded(n: int, first: int) -> Columns:
        return {**pairs(n, first=first), "label": [5 * (i + 0.5) / n for i in range(n)]}

    fake({"train": graded(60, 0), "validation": graded(100, 1000)})
    task = load_task("glue/stsb")
    assert task.is_regression
    for split in ("validation", "test"):
        assert np.histogram(task[split].labels, bins=5, range=(0, 5))[0].tolist() == [10] * 5


def test_single_sentences(fake) -> None:
    def sentences(n: int, first: int) -> Columns:
        return {"sentence": [f"text {i}" for i in range(first, first + n)], "label": [i % 2 for i in range(n)]}

    fake({"train": sentences(20, 0), "validation": sentences(20, 100)}, names=("unacceptable", "acceptable"))
    assert load_task("glue/cola").text_columns == ("sentence",)


def test_an_unknown_task_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TaskDataError, match=r"must be one of glue/cola, .*glue/wnli; got `glue/boolq`"):
        load_task("glue/boolq")
    assert len(TASKS) == 9


def test_without_the_library_the_command_that_installs_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        TaskDataError, match=r"`glue/rte` needs the datasets library; .*`pip install dynprobe\[datasets\]`"
    ):
        load_task("glue/rte")


@pytest.mark.parametrize(
    "error",
    [ConnectionError("Couldn't reach the Hub"), FileNotFoundError("no cache"), DatasetsError("broken download")],
)
def test_an_unreachable_hub_is_a_clear_error(error: Exception, fake) -> None:
    fake({}, error=error)
    with pytest.raises(
        TaskDataError, match=rf"`glue/rte` must come from the model hub .*: {type(error).__name__}: {error}"
    ):
        load_task("glue/rte")
