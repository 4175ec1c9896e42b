"""The shipped tasks: no leak between splits, balance, and nothing to be had from one side alone."""

import gzip
import os
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from dynprobe.errors import TaskDataError
from dynprobe.tasks import baselines, load_task, shipped_license, shipped_tasks
from dynprobe.tasks.shipped import shipped_file

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = REPOSITORY / "data"
WORDNET = Path("/usr/share/wordnet")
PAIRS = ("hyp", "wic")
N_TRAIN = {"supersense": 4000, "hyp": 4000, "wic": 2500, "shift": 4000}


def table(name):
    with shipped_file(f"{name}.csv.gz").open("rb") as raw:
        return pd.read_csv(raw, compression="gzip", dtype=str, keep_default_na=False)


@cache
def baselines_of(name):
    return baselines(load_task(name))


def text_columns(frame):
    return [column for column in frame if column.startswith("text")]


def shared(frame, columns):
    """Values of some columns that stand in more than one split."""
    where = {}
    for column in columns:
        for value, split in zip(frame[column], frame["split"], strict=True):
            where.setdefault(" ".join(value.casefold().split()), set()).add(split)
    return [value for value, splits in where.items() if len(splits) > 1]


@pytest.mark.parametrize("name", shipped_tasks())
def test_no_text_and_no_group_is_in_two_splits(name):
    frame = table(name)
    assert shared(frame, text_columns(frame)) == []
    assert shared(frame, ["group"]) == []


def test_the_search_for_shared_texts_finds_one():
    frame = table("shift")
    leaked = pd.concat([frame, frame[:1].assign(split="test", text=frame["text"][0].upper())])
    assert shared(leaked, ["text"]) == [frame["text"][0].casefold()]


@pytest.mark.parametrize("name", shipped_tasks())
def test_each_split_is_balanced_and_large_enough(name):
    frame = table(name)
    for split, rows in frame.groupby("split"):
        assert len(set(Counter(rows["label"]).values())) == 1, split
    assert (frame["split"] == "train").sum() >= N_TRAIN[name]
    assert not frame.duplicated(text_columns(frame)).any()


@pytest.mark.parametrize("name", PAIRS)
def test_each_text_is_as_often_positive_as_negative_on_its_side(name):
    frame = table(name)
    for column in ("text_a", "text_b"):
        counts = pd.crosstab(frame[column], frame["label"]).to_numpy()
        np.testing.assert_array_equal(counts[:, 0], counts[:, 1])


def test_each_lemma_of_wic_is_as_often_positive_as_negative():
    frame = table("wic")
    counts = pd.crosstab(frame["group"], frame["label"])
    assert (counts["same"] == counts["different"]).all()


@pytest.mark.parametrize("name", PAIRS)
def test_no_text_is_on_both_sides(name):
    frame = table(name)
    assert set(frame["text_a"]).isdisjoint(frame["text_b"])


@pytest.mark.parametrize("name", PAIRS)
def test_one_side_alone_gives_chance(name):
    majority, _, *sides = baselines_of(name)
    assert [side.columns for side in sides] == [("text_a",), ("text_b",)]
    for side in sides:
        assert side.low <= majority.accuracy <= side.high


@pytest.mark.parametrize("name", PAIRS)
def test_one_side_alone_is_no_chance_where_a_word_gives_the_label_away(name):
    task = load_task(name)
    train, test = task["train"], task["test"]

    def marked(split):
        return [
            f"{'zig' if label else 'zag'} {fields[0]}" for fields, label in zip(split.texts, split.labels, strict=True)
        ]

    vectorizer = TfidfVectorizer()
    model = LogisticRegression().fit(vectorizer.fit_transform(marked(train)), train.labels)
    assert model.score(vectorizer.transform(marked(test)), test.labels) == 1.0


def test_words_without_their_order_say_nothing_about_shift():
    """Whether a word is there cannot tell; counted on both classes, each classifier must stay near a half."""
    task = load_task("shift")
    train, test = task["train"], task["test"]
    vectorizer = CountVectorizer(binary=True)
    x = vectorizer.fit_transform([fields[0] for fields in train.texts])
    model = LogisticRegression(max_iter=2000).fit(x, train.labels)
    right = model.score(vectorizer.transform([fields[0] for fields in test.texts]), test.labels)
    # Exchanged and whole sentences are a random half each: three standard errors of a share of n coin flips.
    assert abs(right - 0.5) < 3 * 0.5 / len(test) ** 0.5


def test_first_and_last_word_and_length_of_shift_do_not_depend_on_the_class():
    frame = table("shift")
    tokens = frame["text"].str.split()
    for share in (
        tokens.str[0].str[0].str.isupper(),
        tokens.str[-1].str[-1].isin(list(".?!")),
        tokens.str.len() > tokens.str.len().median(),
    ):
        by_class = share.groupby(frame["label"]).mean()
        spread = share.std() * (2 / (len(frame) / 2)) ** 0.5
        assert abs(by_class["ok"] - by_class["shifted"]) < 4 * spread


def test_near_duplicates_of_shift_are_in_no_two_splits():
    frame = table("shift")
    counts = CountVectorizer(binary=True, token_pattern=r"[A-Za-z']+").fit_transform(frame["text"]).astype(np.int32)
    size = np.asarray(counts.sum(axis=1)).ravel()
    train = (frame["split"] == "train").to_numpy()
    common = (counts[~train] @ counts[train].T).toarray()
    jaccard = common / (size[~train][:, None] + size[train][None, :] - common)
    assert jaccard.max() < 0.6


def test_negatives_of_hyp_are_hypernyms_of_other_nouns_of_the_split():
    frame = table("hyp")
    for _, rows in frame.groupby("split"):
        positive, negative = (Counter(rows["text_b"][rows["label"] == label]) for label in ("hypernym", "distractor"))
        assert positive == negative
    right = dict(
        zip(frame["text_a"][frame["label"] == "hypernym"], frame["text_b"][frame["label"] == "hypernym"], strict=True)
    )
    negative = frame[frame["label"] == "distractor"]
    assert all(right[a] != b for a, b in zip(negative["text_a"], negative["text_b"], strict=True))


@pytest.mark.parametrize("name", shipped_tasks())
def test_shipped_task_loads_with_its_names(name):
    task = load_task(name)
    assert task.name == name
    assert task.description.endswith("?")
    assert "WordNet 3.0" in task.source
    assert list(task.splits) == ["train", "validation", "test"]
    assert task.label_names == tuple(sorted(set(table(name)["label"])))


def test_files_are_small():
    sizes = [len(shipped_file(f"{name}.csv.gz").read_bytes()) for name in shipped_tasks()]
    assert max(sizes) <= 1_400_000
    assert sum(sizes) <= 2_500_000


def test_license_is_shipped():
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in shipped_license()


def test_missing_shipped_file_is_named():
    with pytest.raises(TaskDataError, match=r"shipped file `none.csv.gz` is missing"):
        shipped_file("none.csv.gz")


def test_table_of_the_readme_is_the_one_of_the_files():
    text = (DATA / "README.md").read_text(encoding="utf-8")
    for name in PAIRS:
        for found in baselines_of(name):
            seen = " + ".join(f"`{column}`" for column in found.columns) or "nothing"
            line = f"| `{name}` | {found.name} | {seen} | {found.accuracy:.3f} | {found.low:.3f} to {found.high:.3f} |"
            assert line in text


@pytest.mark.slow
@pytest.mark.skipif(not (WORDNET / "data.noun").is_file(), reason="needs WordNet 3.0 in /usr/share/wordnet")
def test_generator_gives_the_shipped_files(tmp_path):
    built = []
    for run in ("a", "b"):
        readme = tmp_path / f"{run}.md"
        readme.write_bytes((DATA / "README.md").read_bytes())
        command = [sys.executable, str(DATA / "build_tasks.py"), "--wordnet", str(WORDNET)]
        command += ["--out", str(tmp_path / run), "--readme", str(readme)]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONHASHSEED": {"a": "1", "b": "2"}[run]}
        subprocess.run(command, check=True, capture_output=True, env=environment)
        built.append({path.name: path.read_bytes() for path in (tmp_path / run).iterdir()})
        assert readme.read_bytes() == (DATA / "README.md").read_bytes()
    assert built[0] == built[1]
    assert set(built[0]) == {f"{name}.csv.gz" for name in shipped_tasks()}
    for name, data in built[0].items():
        # Another version of zlib may compress to other bytes.
        assert gzip.decompress(data) == gzip.decompress(shipped_file(name).read_bytes())
