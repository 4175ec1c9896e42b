"""Which examples of a task are probed, and what is no task to probe."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from dynprobe.errors import TaskDataError, UsageError
from dynprobe.tasks import Split, Task, load_task, probe_task, probed_part


def split(n: int, first: int = 0, labels: object = ...) -> Split:
    texts = tuple((f"text {i}",) for i in range(first, first + n))
    return Split(texts=texts, labels=np.arange(n) % 4 // 3 if labels is ... else labels)  # 3 of 4 are of class 0


def task(**splits: Split) -> Task:
    return Task(name="own", label_names=("no", "yes"), splits=splits, text_columns=("text",))


def test_sizes_classes_and_splits() -> None:
    own = task(train=split(400), validation=split(80, 400), test=split(60, 500))
    part = probed_part(own, n_train=40, n_test=20)
    assert list(part.splits) == ["train", "test"]
    assert [np.bincount(part[name].labels).tolist() for name in part.splits] == [[30, 10], [15, 5]]
    assert set(part["train"].texts) <= set(own["train"].texts)
    assert set(part["test"].texts) <= set(own["test"].texts)
    assert set(part["train"].texts) <= set(probed_part(own, n_train=80)["train"].texts), "nested"
    order = np.random.default_rng(0).permutation(400)
    moved = Split(texts=tuple(own["train"].texts[i] for i in order), labels=own["train"].labels[order])
    assert probed_part(task(train=moved, test=own["test"]), n_train=40)["train"].texts == part["train"].texts
    assert [len(of) for of in probed_part(own).splits.values()] == [400, 60], "of a small task all"
    assert [len(of) for of in probed_part(own, n_train=None, n_test=None).splits.values()] == [400, 60]
    assert [len(of) for of in probed_part(load_task("hyp")).splits.values()] == [1000, 500]


@pytest.mark.parametrize("test", [None, split(60, 500, labels=None)])
def test_without_a_labelled_test_split_the_validation_split_is_scored(test: Split | None) -> None:
    own = task(train=split(40), validation=split(20, 400), **({} if test is None else {"test": test}))
    assert set(probed_part(own)["test"].texts) == set(own["validation"].texts)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (task(train=split(40)), "a test or validation split with labels; got labels of train in `own`"),
        (task(train=split(40), test=split(9, 50, labels=None)), "got labels of train in `own`"),
        (task(train=split(40, labels=None), test=split(9, 50, labels=None)), "got labels of no split in `own`"),
        (task(test=split(40)), "must have a train split"),
        (task(train=split(3), test=split(9, 50)), r"at least two classes; got one in 3 example\(s\) of `own`"),
        (
            Task(
                name="own",
                label_names=None,
                splits={"train": split(9, labels=np.arange(9) / 2), "test": split(9, labels=np.arange(9) / 2)},
                text_columns=("text",),
            ),
            "a probe task must have classes; got the regression `own`",
        ),
    ],
)
def test_what_cannot_be_probed_is_refused(own: Task, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        probed_part(own)


def test_sizes_that_are_none() -> None:
    own = task(train=split(40), test=split(9, 50))
    with pytest.raises(UsageError, match="`n_train` must be at least 1 example of a probe task; got 0"):
        probed_part(own, n_train=0)
    with pytest.raises(UsageError, match="`n_test` must be at least 1"):
        probed_part(own, n_test=-1)
    with pytest.raises(UsageError, match=r"at least two classes; got one in 1 example\(s\)"):
        probed_part(own, n_train=1)


def test_a_probe_task_from_a_task_a_name_and_a_file(saved_model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(saved_model)
    wic = probe_task("wic", tokenizer, n_train=30, n_test=12, max_length=9)
    assert (wic.train.n_examples, wic.test.n_examples, wic.n_classes) == (30, 12, 2)
    assert wic.train.label_names == wic.test.label_names == ("different", "same")
    assert wic.train.real["model"].shape[1] == 9
    assert all(len(texts) == 2 for texts in wic.train.texts)
    part = probed_part(load_task("wic"), n_train=30, n_test=12)
    labels = dict(zip(part["train"].texts, part["train"].labels.tolist(), strict=True))
    assert [labels[texts] for texts in wic.train.texts] == wic.train.labels.tolist()
    again = probe_task(part, tokenizer, n_train=None, n_test=None, max_length=9)
    assert again.train.fingerprint == wic.train.fingerprint
    file = tmp_path / "mine.csv"
    file.write_text("text,label,split\n" + "".join(f"the {w},{w},{s}\n" for s in ("train", "dev") for w in "abcd"))
    mine = probe_task(file, tokenizer)
    assert (mine.train.n_examples, mine.test.n_examples, mine.n_classes) == (4, 4, 4)
    with pytest.raises(TaskDataError, match="does not exist"):
        probe_task(tmp_path / "none.csv", tokenizer)


def test_a_split_of_a_task_is_taken_as_it_is() -> None:
    own = task(train=split(8), test=split(9, 50))
    assert probed_part(replace(own, description="why")).description == "why"
