"""Split, Task, encoding, baselines."""

import pickle

import numpy as np
import pytest

from dynprobe.errors import TaskDataError
from dynprobe.tasks import Split, Task, baselines, encode, load_task
from dynprobe.tasks.baseline import binomial_interval

TEXTS = tuple((f"text {i}",) for i in range(100))
LABELS = np.arange(100) % 4 // 3  # 75 of class 0, 25 of class 1


def task(labels=(0, 1), names=("no", "yes"), texts=(("a",), ("b",)), columns=("text",), split="train"):
    labels = None if labels is None else np.array(labels)
    return Task(name="t", label_names=names, splits={split: Split(texts=texts, labels=labels)}, text_columns=columns)


def test_head_keeps_the_order():
    assert Split(texts=TEXTS, labels=LABELS).head(3).texts == TEXTS[:3]
    assert len(Split(texts=TEXTS).head(1000)) == 100


def test_head_refuses_a_negative_number():
    with pytest.raises(ValueError, match=r"`n` must be 0 or more; got -1"):
        Split(texts=TEXTS).head(-1)


@pytest.mark.parametrize("seed", [0, 7])
def test_take_is_nested_and_stratified(seed):
    split = Split(texts=TEXTS, labels=LABELS)
    small, large = split.take(20, seed=seed), split.take(40, seed=seed)
    assert large.texts[:20] == small.texts
    assert np.bincount(small.labels).tolist() == [15, 5]
    assert np.bincount(large.labels).tolist() == [30, 10]
    label_of = dict(zip(TEXTS, LABELS, strict=True))
    assert [label_of[text] for text in large.texts] == large.labels.tolist()


def test_take_depends_on_the_seed_and_not_on_the_order():
    split = Split(texts=TEXTS, labels=LABELS)
    turned = Split(texts=TEXTS[::-1], labels=LABELS[::-1])
    assert split.take(20).texts == turned.take(20).texts
    assert split.take(20).texts != split.take(20, seed=1).texts


def test_take_all_keeps_equal_texts():
    split = Split(texts=(("same",),) * 5 + (("other",),), labels=np.array([0, 0, 0, 1, 1, 1]))
    assert sorted(split.take(6).texts) == sorted(split.texts)


@pytest.mark.parametrize("n", [0, 101])
def test_take_refuses_numbers_out_of_range(n):
    with pytest.raises(ValueError, match=rf"`n` must be from 1 to 100, the size of the split; got {n}"):
        Split(texts=TEXTS).take(n)


def test_split_is_frozen_and_copies_its_labels():
    labels = LABELS.copy()
    split = Split(texts=TEXTS, labels=labels)
    labels[0] = 1
    assert split.labels[0] == 0
    with pytest.raises(ValueError, match="read-only"):
        split.labels[0] = 1
    with pytest.raises(AttributeError, match="cannot assign"):
        split.texts = ()


def test_split_refuses_another_number_of_labels():
    with pytest.raises(TaskDataError, match=r"`labels` must have 100 entries, one per text; got shape \(3,\)"):
        Split(texts=TEXTS, labels=np.zeros(3, dtype=int))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "holdout"}, r"`splits` must be named train, validation or test; got \['holdout'\]"),
        ({"texts": (), "labels": ()}, r"split `train` of task `t` must hold at least one example"),
        ({"names": ("only",), "labels": (0, 0)}, r"must have at least two classes; got \['only'\]"),
        ({"columns": ("a", "b")}, r"must have 2 text\(s\); got \[1\]"),
        ({"labels": (0, 2)}, r"must be integers from 0 to 1"),
        ({"labels": (0.0, 1.0)}, r"must be integers from 0 to 1"),
        ({"labels": (0.5, np.nan), "names": None}, r"must be finite; got NaN or infinity"),
    ],
)
def test_task_refuses(changes, message):
    with pytest.raises(TaskDataError, match=message):
        task(**changes)


def test_task_names_the_splits_that_it_has():
    with pytest.raises(TaskDataError, match=r"task `t` has no split `test`; it has train"):
        task()["test"]


def test_task_survives_pickling():
    copy = pickle.loads(pickle.dumps(task()))
    assert copy.label_names == ("no", "yes")
    assert copy["train"].texts == (("a",), ("b",))


def fake_tokenizer(first, second=None, *, truncation, max_length):
    assert truncation
    rows = [
        [len(w) for w in " ".join(t).split()][:max_length] for t in zip(first, second or [""] * len(first), strict=True)
    ]
    encoded = {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows], "offsets": rows}
    return encoded if second is None else {**encoded, "token_type_ids": [[0] * len(row) for row in rows]}


def test_encode_gives_model_inputs_and_labels():
    features = encode(Split(texts=(("a bb ccc",), ("dddd",)), labels=np.array([1, 0])), fake_tokenizer, max_length=2)
    assert features == [
        {"input_ids": [1, 2], "attention_mask": [1, 1], "labels": 1},
        {"input_ids": [4], "attention_mask": [1], "labels": 0},
    ]


def test_encode_pairs_and_targets():
    (feature,) = encode(Split(texts=(("a", "bb"),), labels=np.array([0.5])), fake_tokenizer)
    assert feature == {"input_ids": [1, 2], "attention_mask": [1, 1], "token_type_ids": [0, 0], "labels": 0.5}


def test_encode_without_labels_or_texts():
    (feature,) = encode(Split(texts=(("a",),)), fake_tokenizer)
    assert "labels" not in feature
    assert encode(Split(texts=()), fake_tokenizer) == []


def test_encode_refuses_no_length():
    with pytest.raises(ValueError, match=r"`max_length` must be at least 1; got 0"):
        encode(Split(texts=(("a",),)), fake_tokenizer, max_length=0)


def test_baselines_are_reproducible_and_know_an_easy_task():
    texts = tuple((f"{'good' if i % 4 == 3 else 'bad'} film {i}",) for i in range(100))
    split = Split(texts=texts, labels=LABELS)
    easy = Task(name="e", label_names=("no", "yes"), splits={"train": split, "test": split}, text_columns=("text",))
    majority, tfidf = baselines(easy)
    assert (majority.name, majority.columns, majority.accuracy, majority.n) == ("majority", (), 0.75, 100)
    assert (tfidf.name, tfidf.columns, tfidf.accuracy, tfidf.high) == ("tfidf", ("text",), 1.0, 1.0)
    assert baselines(easy) == (majority, tfidf)


def test_baselines_of_a_shipped_task_beat_chance_with_its_text():
    majority, tfidf = baselines(load_task("shift"))
    assert tfidf.low > majority.high


def test_baselines_need_classes():
    with pytest.raises(TaskDataError, match=r"baselines need classes in train and train; task `t` has none"):
        baselines(task(labels=(0.5, 0.7), names=None), split="train")


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (3, 10), (500, 1000), (999, 1000)])
def test_interval_has_the_right_tails(successes, n):
    stats = pytest.importorskip("scipy.stats")
    exact = stats.binomtest(successes, n).proportion_ci(0.95, method="exact")
    # 50 halvings resolve 1e-15; the tail, a sum of n terms of logarithms up to n log n, is good to 1e-10 or better.
    np.testing.assert_allclose(binomial_interval(successes, n), (exact.low, exact.high), atol=1e-9)


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_interval_refuses(successes, n):
    with pytest.raises(ValueError, match=r"`successes` must be from 0 to `n` >= 1"):
        binomial_interval(successes, n)
