"""Files and data sets of the user: what is understood, and what is refused with which words."""

import gzip
import json

import numpy as np
import pytest

from dynprobe.errors import TaskDataError
from dynprobe.tasks import files, load_task, read_texts, task_from_dataset

NASTY = [
    "<script>alert(1)</script>",
    "two\nlines",
    "nul \0 inside",
    "emoji 🙂 e\u0301",
    'comma, "quote"',
    "NA",
    "\u2028x",
]
ROWS = [(f"text number {i}", "yes" if i % 2 else "no") for i in range(200)]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def csv_text(rows, header="text,label"):
    return "\n".join([header, *(",".join(str(cell) for cell in row) for row in rows)]) + "\n"


def json_lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def records(rows=ROWS):
    return [{"text": text, "label": label} for text, label in rows]


def all_texts(task):
    return sorted(text for split in task.splits.values() for text in split.texts)


def as_csv(folder):
    return write(folder / "my.data.csv", csv_text(ROWS))


def as_tsv(folder):
    return write(folder / "my.tsv", csv_text(ROWS).replace(",", "\t"))


def as_bom_crlf(folder):
    return write(folder / "my.csv", "\ufeff" + csv_text(ROWS).replace("\n", "\r\n"))


def as_gzip(folder):
    return write(folder / "my.csv.gz", gzip.compress(csv_text(ROWS).encode()))


def as_json_lines(folder):
    return write(folder / "my.jsonl", json_lines(records()))


def as_parquet(folder):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.Table.from_pylist(records()), folder / "my.parquet")
    return folder / "my.parquet"


@pytest.mark.parametrize("make", [as_csv, as_tsv, as_bom_crlf, as_gzip, as_json_lines, as_parquet])
def test_every_kind_of_file_gives_the_same_task(make, tmp_path):
    task = load_task(make(tmp_path))
    assert task.name == "my"
    assert task.label_names == ("no", "yes")
    assert all_texts(task) == sorted((text,) for text, _ in ROWS)
    known = dict(ROWS)
    for split in task.splits.values():
        assert [task.label_names[label] for label in split.labels] == [known[fields[0]] for fields in split.texts]


def test_hash_split_keeps_equal_texts_together_and_rows_in_place(tmp_path):
    twice = load_task(write(tmp_path / "twice.csv", csv_text(ROWS + ROWS)))
    once = load_task(write(tmp_path / "once.csv", csv_text(ROWS)))
    for name, split in once.splits.items():
        assert set(split.texts) == set(twice[name].texts)
    sizes = [len(split) for split in once.splits.values()]
    # 200 draws with probability 0.8: four standard deviations.
    assert abs(sizes[0] - 160) < 4 * (200 * 0.8 * 0.2) ** 0.5


def test_pairs_that_share_the_first_text_share_a_split(tmp_path):
    rows = [(f"premise {i // 3}", f"hypothesis {i}", i % 2) for i in range(300)]
    task = load_task(write(tmp_path / "nli.csv", csv_text(rows, "premise,hypothesis,label")))
    firsts = [{fields[0] for fields in split.texts} for split in task.splits.values()]
    assert sum(map(len, firsts)) == 100
    assert task.text_columns == ("premise", "hypothesis")
    assert task.label_names == ("0", "1")


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("Sentence,label", ("Sentence",)),
        ("question,sentence,label", ("question", "sentence")),
        ("sentence1,sentence2,label", ("sentence1", "sentence2")),
        ("text_a,text_b,class", ("text_a", "text_b")),
    ],
)
def test_columns_are_found(header, found, tmp_path):
    n = header.count(",")
    rows = [(*(f"{side} {i}" for side in "ab"[:n]), i % 2) for i in range(200)]
    assert load_task(write(tmp_path / "a.csv", csv_text(rows, header))).text_columns == found


def test_columns_can_be_named(tmp_path):
    rows = [(f"x {i}", f"y {i}", i % 2, ("train", "dev")[i % 3 == 0]) for i in range(20)]
    path = write(tmp_path / "a.csv", csv_text(rows, "left,right,gold,part"))
    task = load_task(path, text=("left", "right"), label="gold", split="part")
    assert list(task.splits) == ["train", "validation"]
    assert [len(split) for split in task.splits.values()] == [13, 7]


def test_folder_with_one_file_per_split(tmp_path):
    write(tmp_path / "train.csv", csv_text(ROWS[:10]))
    write(tmp_path / "dev.jsonl", json_lines(records(ROWS[10:14])))
    write(tmp_path / "README.md", "not data")
    task = load_task(tmp_path)
    assert {name: len(split) for name, split in task.splits.items()} == {"train": 10, "validation": 4}
    assert task.name == tmp_path.name


def test_a_split_of_minus_ones_has_no_labels(tmp_path):
    write(tmp_path / "train.csv", csv_text([("a", 0), ("b", 1)]))
    write(tmp_path / "test.csv", csv_text([("c", -1), ("d", -1)]))
    task = load_task(tmp_path)
    assert task["test"].labels is None
    assert task.label_names == ("0", "1")


def test_minus_one_can_be_a_class(tmp_path):
    write(tmp_path / "train.csv", csv_text([("a", -1), ("b", 1)]))
    write(tmp_path / "test.csv", csv_text([("c", -1), ("d", -1)]))
    task = load_task(tmp_path)
    assert task.label_names == ("-1", "1")
    assert task["test"].labels.tolist() == [0, 0]


def labelled(folder, labels):
    rows = [(f"t {i}", label, "train") for i, label in enumerate(labels)]
    rows += [(f"v {i}", label, "test") for i, label in enumerate(labels)]
    return load_task(write(folder / "a.csv", csv_text(rows, "text,label,split")))


@pytest.mark.parametrize(
    ("labels", "names", "indices"),
    [
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        ([10, 2, 2], ("2", "10"), [1, 0, 0]),
        (["1.0", "0.0", "1.0"], ("0", "1"), [1, 0, 1]),
        (["0.5", "1", "1.5"], ("0.5", "1", "1.5"), [0, 1, 2]),
        (["9007199254740993", "9007199254740992"], ("9007199254740992", "9007199254740993"), [1, 0]),
    ],
)
def test_labels_become_classes(labels, names, indices, tmp_path):
    task = labelled(tmp_path, labels)
    assert task.label_names == names
    assert task["train"].labels.tolist() == indices


def test_many_fractional_labels_make_a_regression(tmp_path):
    targets = [i / 4 for i in range(20)]
    task = labelled(tmp_path, targets)
    assert task.is_regression
    assert task.n_classes == 1
    assert task["train"].labels.tolist() == targets


def test_texts_may_hold_anything(tmp_path):
    path = write(tmp_path / "a.jsonl", json_lines({"text": text, "label": i % 2} for i, text in enumerate(NASTY)))
    assert read_texts(path) == [(text,) for text in NASTY]
    quoted = "".join('"' + text.replace('"', '""') + '"\n' for text in NASTY)
    assert read_texts(write(tmp_path / "a.csv", "text\n" + quoted)) == [(text,) for text in NASTY]


def test_labels_may_hold_anything(tmp_path):
    rows = [{"text": str(i), "label": NASTY[i % 2], "split": "train"} for i in range(4)]
    rows += [{"text": "x", "label": NASTY[2], "split": "test"}]
    task = load_task(write(tmp_path / "a.jsonl", json_lines(rows)))
    assert set(task.label_names) == set(NASTY[:3])


def test_text_file_has_one_text_per_line(tmp_path):
    path = write(tmp_path / "a.txt", "\ufefffirst\r\n\r\n  \nsecond \u2028 line\n")
    assert read_texts(path) == [("first",), ("second \u2028 line",)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", r"must hold data; the file is empty"),
        ("a.csv", "  \n\n", r"must hold data; the file is empty"),
        ("a.csv", "text,label\n", r"must hold at least one row; got none"),
        ("a.csv", b"text,label\nfine,1\ncaf\xe9,0\n", r"must be UTF-8; got byte 0xe9 in line 3"),
        ("a.csv", "body,label\nx,1\n", r"must have a text column; found columns 'body', 'label'. Name yours with text="),
        ("a.csv", "text,kind\nx,1\n", r"must have a label column; found columns 'text', 'kind'. Name yours with label="),
        ("a.csv", "text,text,label\nx,y,1\n", r"must name each column once; got \['text'\]"),
        ("a.csv", "text,label\nx,1\ny\n", r"must have 2 cells in each row, .*; got 1 in row 2, which ends in line 3"),
        ("a.csv", 'text,label\n"x,1\n', r"must be a well-formed table; line 2: unexpected end of data"),
        ("a.csv", f"text,label\n{'x' * 200_000},1\n", r"well-formed table; line 2: field larger than field limit"),
        ("a.csv", "text,label\nx,1\n ,0\n", r"text must not be empty; got ' ' in row 2, column `text`"),
        ("a.csv", "text,label\nx,1\ny,\n", r"label must be a class or a finite number; got '' in row 2, column `label`"),
        ("a.csv", "text,label\nx,1\ny,nan\n", r"label must be a class or a finite number; got 'nan' in row 2"),
        ("a.csv", "text,label,split\nx,1,train\ny,0,later\n", r"column `split` .* got 'later' in row 2"),
        ("a.csv", "text,label,split\nx,1,train\ny,1,test\n", r"must have at least two classes; got \['1'\]"),
        ("a.csv", "text,label,split\nx,-1,train\ny,-1,test\n", r"at least one split must have labels; every label is -1"),
        ("a.csv", "text,label\nx,1\ny,0\n", r"too few different texts \(2\) to be split by hash: none fell into"),
        ("a.csv.gz", b"not gzip", r"must be readable; got: Not a gzipped file"),
        ("a.csv.gz", gzip.compress(b"text,label\n" * 100, mtime=0)[:-12], r"must be readable; got: "),
        ("a.jsonl", '{"text": "x", "label": 1}\n[1]\n', r"one JSON object per line; got list in line 2"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text"\n', r"one JSON object per line; line 2: "),
        ("a.jsonl", "[" * 100_000, r"one JSON object per line; line 1: "),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"label": 0}\n', r"text must be a string; got None in row 2"),
        ("a.jsonl", '{"text": "x", "label": NaN}\n', r"got nan in row 1, column `label`"),
        ("a.jsonl", '{"text": "x", "label": [1]}\n', r"label must be a class or a number; got list in row 1"),
        ("a.jsonl", '{"text": "x", "label": 1' + "0" * 30 + "}\n", r"label must fit into 64 bits; got a number of 100 bits"),
        ("a.jsonl", '{"text": "\\ud800", "label": 1}\n', r"text must be valid Unicode; got a lone surrogate in row 1"),
        ("a.parquet", b"not parquet at all", r"must be a Parquet file; pyarrow says"),
        ("a.xlsx", b"anything", r"must end in one of .csv, .tsv, .jsonl, .ndjson, .parquet, .txt"),
    ],
)  # fmt: skip
def test_bad_files_are_refused(name, content, message, tmp_path):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = write(tmp_path / name, content)
    with pytest.raises(TaskDataError, match=message):
        load_task(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "body"}, r"`text` must name a column of .*; got `body`, found columns 'text', 'label'"),
        ({"text": ("a", "b", "c")}, r"`text` must name one or two columns; got 3"),
        ({"label": "gold"}, r"`label` must name a column of .*; got `gold`"),
        ({"split": "part"}, r"`split` must name a column of .*; got `part`"),
    ],
)
def test_columns_that_are_not_there_are_refused(arguments, message, tmp_path):
    with pytest.raises(TaskDataError, match=message):
        load_task(as_csv(tmp_path), **arguments)


def test_unknown_name_lists_the_shipped_tasks():
    known = r"\(hyp, shift, supersense, wic\), one from a package \(mr, r8, subj\), glue/NAME, a file or a folder"
    with pytest.raises(TaskDataError, match=rf"{known}; got `mrpc`"):
        load_task("mrpc")


def test_missing_file_of_texts(tmp_path):
    with pytest.raises(TaskDataError, match=r"must be a file; there is none"):
        read_texts(tmp_path / "none.txt")


def test_folder_without_data(tmp_path):
    with pytest.raises(TaskDataError, match=r"must hold files named train, validation or test"):
        load_task(tmp_path)


def test_folder_with_two_files_for_a_split(tmp_path):
    write(tmp_path / "dev.csv", csv_text(ROWS[:4]))
    write(tmp_path / "val.csv", csv_text(ROWS[:4]))
    with pytest.raises(TaskDataError, match=r"one file per split; got `dev.csv` and `val.csv` for validation"):
        load_task(tmp_path)


def test_folder_whose_files_differ_in_columns(tmp_path):
    write(tmp_path / "train.csv", csv_text(ROWS[:4]))
    write(tmp_path / "test.csv", csv_text(ROWS[:4], "sentence,label"))
    with pytest.raises(TaskDataError, match=r"test.csv` must have column `text` as the other splits"):
        load_task(tmp_path)


def test_file_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_BYTES", 1000)
    path = write(tmp_path / "a.csv.gz", gzip.compress(b"x" * 10_000))
    with pytest.raises(TaskDataError, match=r"must hold at most 1000 bytes \(unpacked\)"):
        load_task(path)


class ClassLabel:
    names = ("negative", "positive")


class FakeDataset:
    """As much of a `datasets.Dataset` as a task needs."""

    def __init__(self, columns, features=None):
        self.columns, self.features = columns, features

    @property
    def column_names(self):
        return list(self.columns)

    def __getitem__(self, name):
        return self.columns[name]


def test_data_set_keeps_its_class_names():
    train = FakeDataset({"sentence": ["a", "b"], "label": np.array([1, 1]), "idx": [0, 1]}, {"label": ClassLabel})
    test = FakeDataset({"sentence": ["c"], "label": [-1], "idx": [0]}, {"label": ClassLabel})
    task = task_from_dataset({"train": train, "test": test, "unsupervised": train}, name="films")
    assert (task.name, task.label_names) == ("films", ("negative", "positive"))
    assert task["train"].labels.tolist() == [1, 1]
    assert task["test"].labels is None


def test_one_data_set_is_split_by_hash():
    task = task_from_dataset(FakeDataset({"text": [t for t, _ in ROWS], "label": [i % 2 for i in range(200)]}))
    assert sum(len(split) for split in task.splits.values()) == 200
    assert list(task.splits) == ["train", "validation", "test"]


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        (42, TypeError, r"`dataset` must have `column_names` and columns, or map split names to such; got int"),
        ({"train": 42}, TypeError, r"must have `column_names` and columns; got int in `dataset/train`"),
        ({"all": FakeDataset({})}, TaskDataError, r"must have a split named train, validation or test; got \['all'\]"),
        (FakeDataset({"text": []}), TaskDataError, r"`dataset` must hold at least one row; got none"),
        (FakeDataset({"text": ["a"], "label": [2]}, {"label": ClassLabel}), TaskDataError, r"must be from 0 to 1; got 2"),
        (FakeDataset({"text": ["a", "b"], "label": [0, -1]}, {"label": ClassLabel}), TaskDataError,
         r"each row of a labelled split must have a label; got -1"),
        (FakeDataset({"text": [float("nan")], "label": [1]}), TaskDataError, r"text must be a string; got nan in row 1"),
        (FakeDataset({"text": ["a"], "label": [None]}), TaskDataError, r"got None in row 1, column `label`"),
    ],
)  # fmt: skip
def test_bad_data_sets_are_refused(dataset, error, message):
    with pytest.raises(error, match=message):
        task_from_dataset(dataset)
