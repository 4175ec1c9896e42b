"""Build the four shipped tasks from the database files of WordNet 3.0.

    python data/build_tasks.py [--wordnet DIR] [--out DIR] [--readme FILE]

Each choice is made by a hash of the content, never by a random generator or by the order of a file, so the same database
gives the same files on every machine. Then the table of README.md is computed from the files just written.
"""

import argparse
import csv
import gzip
import hashlib
import io
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from readme_table import update_readme
from wordnet import NOUN_TOPICS, Synset, ancestors, base_forms, read_exceptions, read_synsets

HERE = Path(__file__).resolve().parent
SPLITS = ("train", "validation", "test")
TOPICS = ("act", "animal", "artifact", "body", "cognition", "communication", "food", "person", "plant", "substance")
TOPIC_ROWS = {"train": 400, "validation": 100, "test": 100}  # per topic
HYP_PAIRS = {"train": 2000, "validation": 500, "test": 500}  # each gives one positive and one negative row
SHIFT_ROWS = {"train": 4000, "validation": 1000, "test": 1000}
GLOSS_CHARACTERS = (20, 160)
TOPIC_GLOSSES_PER_HYPERNYM = 8
HYP_GLOSSES_PER_HYPERNYM = 2
WIC_PAIRS_PER_LEMMA = 6
SENTENCE_WORDS = (6, 24)
NEAR_DUPLICATE = 0.6  # share of common words (Jaccard) from which two sentences are near-duplicates


T = TypeVar("T")


class Row(NamedTuple):
    """One labelled example. All rows of one group are in one split."""

    split: str
    group: str
    label: str
    texts: tuple[str, ...]


def content_hash(*parts: str) -> str:
    """Sha256 of some strings, in hexadecimal digits."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def split_of(task: str, group: str) -> str:
    """Split of a group: 4/6 train, 1/6 validation, 1/6 test."""
    part = int(content_hash(task, "split", group)[:12], 16) * 6 >> 48
    return SPLITS[max(0, part - 3)]


def ordered(items: Iterable[T], key: Callable[[T], str]) -> list[T]:
    """Items in the order of the hash of their key."""
    return sorted(items, key=lambda item: content_hash(key(item)))


def at_most(items: Iterable[T], group: Callable[[T], str], limit: int) -> list[T]:
    """The first `limit` items of each group."""
    seen: Counter[str] = Counter()
    kept = []
    for item in items:
        seen[group(item)] += 1
        if seen[group(item)] <= limit:
            kept.append(item)
    return kept


# Glosses of nouns: supersense and hyp


def usable_nouns(nouns: Sequence[Synset]) -> list[Synset]:
    """Nouns with one hypernym and a gloss of fair length that no other noun has, in hash order."""
    count = Counter(noun.definition.casefold() for noun in nouns)
    low, high = GLOSS_CHARACTERS
    usable = (
        noun
        for noun in nouns
        if len(noun.hypernyms) == 1
        and not noun.is_instance
        and low <= len(noun.definition) <= high
        and '"' not in noun.definition
        and count[noun.definition.casefold()] == 1
    )
    return ordered(usable, lambda noun: noun.definition)


def build_supersense(nouns: Sequence[Synset]) -> list[Row]:
    """Gloss to topic. A hypernym with all its children is in one split."""
    chosen = at_most(usable_nouns(nouns), lambda noun: noun.hypernyms[0], TOPIC_GLOSSES_PER_HYPERNYM)
    rows = [
        Row(split_of("supersense", noun.hypernyms[0]), noun.hypernyms[0], topic, (noun.definition,))
        for noun in chosen
        if (topic := NOUN_TOPICS.get(noun.lexfile, "")) in TOPICS
    ]
    return [
        row
        for split in SPLITS
        for topic in TOPICS
        for row in take([row for row in rows if (row.split, row.label) == (split, topic)], TOPIC_ROWS[split])
    ]


def build_hyp(nouns: Sequence[Synset]) -> list[Row]:
    """Gloss of a noun and gloss of its hypernym, or of the hypernym of another noun of the split.

    Only nouns without hyponyms stand on the first side and only hypernyms on the second, so no gloss is on both. Each
    gloss is as often in a positive as in a negative row, so neither side alone says anything.
    """
    usable = {noun.key: noun for noun in usable_nouns(nouns)}
    leaves = [n for n in usable.values() if not n.has_children and n.hypernyms[0] in usable]
    leaves = at_most(leaves, lambda noun: noun.hypernyms[0], HYP_GLOSSES_PER_HYPERNYM)
    parents = {noun.key: noun.hypernyms for noun in nouns}
    rows = []
    for split in SPLITS:
        members = [noun for noun in leaves if split_of("hyp", noun.hypernyms[0]) == split]
        children = take(members, HYP_PAIRS[split])
        right = [noun.hypernyms[0] for noun in children]
        wrong = derange(right, [ancestors(noun.key, parents) for noun in children])
        for child, *others in zip(children, right, wrong, strict=True):
            for label, other in zip(("hypernym", "distractor"), others, strict=True):
                texts = (child.definition, usable[other].definition)
                rows.append(Row(split, child.hypernyms[0], label, texts))
    return rows


def derange(items: Sequence[str], forbidden: Sequence[set[str]]) -> list[str]:
    """Rotate items by half their number, then exchange those that fell on a forbidden place."""
    half = len(items) // 2
    moved = [*items[half:], *items[:half]]
    for i in range(len(moved)):
        if moved[i] in forbidden[i]:
            j = next(j for j in range(len(moved)) if moved[j] not in forbidden[i] and moved[i] not in forbidden[j])
            moved[i], moved[j] = moved[j], moved[i]
    return moved


# Example sentences: wic and shift


def sentences_by_lemma(synsets: Sequence[Synset], folder: Path) -> dict[tuple[str, str], dict[str, list[str]]]:
    """Sentences that hold exactly one word of their synset, by (lemma, part of speech), then by sense.

    A sentence that illustrates several senses or words is left out: no sentence can be in two splits.
    """
    exceptions = {pos: read_exceptions(folder, pos) for pos in "nvar"}
    uses: dict[str, set[tuple[str, str, str]]] = defaultdict(set)
    for synset in synsets:
        for sentence in synset.examples:
            forms = (base_forms(w, synset.pos, exceptions[synset.pos]) for w in words(sentence))
            held = set().union(*forms).intersection(word.lower() for word in synset.words)
            uses[sentence].update((lemma, synset.pos, synset.key) for lemma in held or {"?"})
    once = Counter(normalised(sentence) for sentence in uses)
    by_lemma: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for sentence, found in uses.items():
        (lemma, pos, sense), *more = sorted(found)
        if not more and lemma != "?" and once[normalised(sentence)] == 1 and len(words(sentence)) >= 3:
            by_lemma[lemma, pos][sense].append(sentence)
    return by_lemma


def build_wic(synsets: Sequence[Synset], folder: Path) -> list[Row]:
    """Two sentences with the same word: in the same sense, or not.

    Pairs (x, y) of one sense are positive; the y of a pair of another sense makes the negative row of each x. So each
    sentence and each lemma is as often in a positive as in a negative row.
    """
    rows = []
    for (lemma, _), senses in sorted(sentences_by_lemma(synsets, folder).items()):
        pairs = [
            (pair[0], pair[1], sense)
            for sense, found in sorted(senses.items())
            for pair in zip(*[iter(ordered(found, str))] * 2, strict=False)
        ]
        x, y, sense = zip(*pick_senses(pairs), strict=True) if len({s for *_, s in pairs}) > 1 else ((), (), ())
        others = [{s for s in range(len(y)) if sense[s] == mine} for mine in sense]
        for i, j in enumerate(rotation(others)):
            split = split_of("wic", lemma)
            rows += [Row(split, lemma, "same", (x[i], y[i])), Row(split, lemma, "different", (x[i], y[j]))]
    return rows


def pick_senses(pairs: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """At most so many pairs per lemma, no sense with more than half of them, so that all can be exchanged."""
    turn: Counter[str] = Counter()
    ranked = []
    for pair in pairs:
        ranked.append((turn[pair[2]], pair))
        turn[pair[2]] += 1
    chosen = [pair for _, pair in sorted(ranked)][:WIC_PAIRS_PER_LEMMA]
    count = Counter(sense for *_, sense in chosen)
    return at_most(sorted(chosen, key=lambda p: p[2]), lambda p: p[2], len(chosen) - max(count.values()))


def rotation(same: Sequence[set[int]]) -> list[int]:
    """Index of another sense's pair for each pair: the smallest rotation without a conflict."""
    n = len(same)
    for shift in range(1, n):
        moved = [(i + shift) % n for i in range(n)]
        if not any(j in same[i] for i, j in enumerate(moved)):
            return moved
    return []


def build_shift(synsets: Sequence[Synset]) -> list[Row]:
    """Sentence as written, or with two neighbouring words exchanged; each sentence once."""
    owners: dict[str, str] = {}
    for synset in synsets:
        for sentence in synset.examples:
            if swaps(sentence) and SENTENCE_WORDS[0] <= len(sentence.split()) <= SENTENCE_WORDS[1]:
                owners.setdefault(sentence, synset.key)
    pool: dict[str, list[str]] = {split: [] for split in SPLITS}
    for sentence in without_near_duplicates(ordered(owners, str)):
        pool[split_of("shift", owners[sentence])].append(sentence)
    rows = []
    for split in SPLITS:
        for i, sentence in enumerate(take(pool[split], SHIFT_ROWS[split])):
            label = ("ok", "shifted")[i % 2]
            text = sentence if label == "ok" else shifted(sentence)
            rows.append(Row(split, owners[sentence], label, (text,)))
    return rows


def swaps(sentence: str) -> list[int]:
    """Places where a word may change place with the next one.

    Both are plain lower-case words and differ; the first and the last word stay, so neither capital letters nor
    punctuation can give the exchange away.
    """
    tokens = sentence.split()
    plain = [re.fullmatch("[a-z]+", token) is not None for token in tokens]
    inner = range(1, len(tokens) - 2)
    return [i for i in inner if plain[i] and plain[i + 1] and tokens[i] != tokens[i + 1]]


def shifted(sentence: str) -> str:
    """Exchange two neighbouring words, at a place given by the hash of the sentence."""
    tokens, places = sentence.split(), swaps(sentence)
    i = places[int(content_hash("place", sentence)[:12], 16) % len(places)]
    tokens[i], tokens[i + 1] = tokens[i + 1], tokens[i]
    return " ".join(tokens)


def without_near_duplicates(sentences: Sequence[str]) -> list[str]:
    """Sentences that share less than a part of their words with each sentence kept before.

    Two sets of words that have a part t in common share a word among the rarest n - ceil(t n) + 1 of each, so only
    sentences that share such a word are compared; none is missed.
    """
    bags = [frozenset(words(sentence)) for sentence in sentences]
    frequency = Counter(word for bag in bags for word in bag)
    holders: dict[str, list[frozenset[str]]] = defaultdict(list)
    chosen = []
    for sentence, bag in zip(sentences, bags, strict=True):
        n_rare = len(bag) - math.ceil(NEAR_DUPLICATE * len(bag)) + 1
        rare = sorted(bag, key=lambda word: (frequency[word], word))[:n_rare]
        if any(len(bag & other) >= NEAR_DUPLICATE * len(bag | other) for word in rare for other in holders[word]):
            continue
        for word in rare:
            holders[word].append(bag)
        chosen.append(sentence)
    return chosen


def words(sentence: str) -> list[str]:
    """Words of a sentence, in lower case."""
    return re.findall(r"[a-z']+", sentence.lower())


def normalised(sentence: str) -> str:
    """A sentence without case and punctuation."""
    return " ".join(words(sentence))


# Files


def take(items: Sequence[T], n: int) -> Sequence[T]:
    """The first `n` items; an error where there are fewer."""
    if len(items) < n:
        raise SystemExit(f"needed {n} items, found {len(items)}: is this WordNet 3.0?")
    return items[:n]


def write_task(path: Path, task: str, rows: Sequence[Row]) -> None:
    """Write rows in the order of their hash as gzipped CSV that holds no time and no name."""
    columns = ["text"] if len(rows[0].texts) == 1 else ["text_a", "text_b"]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["split", "group", "label", *columns])
    order = sorted(rows, key=lambda row: (SPLITS.index(row.split), content_hash(task, row.label, *row.texts)))
    writer.writerows([row.split, row.group, row.label, *row.texts] for row in order)
    path.write_bytes(gzip.compress(table.getvalue().encode(), compresslevel=9, mtime=0))


def main() -> None:
    """Build all tasks."""
    parser = argparse.ArgumentParser(description="Build the shipped tasks from WordNet 3.0.")
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"), help="folder with data.noun ...")
    parser.add_argument("--out", type=Path, default=HERE / "tasks", help="folder for the files")
    parser.add_argument("--readme", type=Path, default=HERE / "README.md", help="file whose table is renewed")
    options = parser.parse_args()
    synsets = [synset for pos in "nvar" for synset in read_synsets(options.wordnet, pos)]
    nouns = [synset for synset in synsets if synset.pos == "n"]
    options.out.mkdir(parents=True, exist_ok=True)
    for task, rows in (
        ("supersense", build_supersense(nouns)),
        ("hyp", build_hyp(nouns)),
        ("wic", build_wic(synsets, options.wordnet)),
        ("shift", build_shift(synsets)),
    ):
        write_task(options.out / f"{task}.csv.gz", task, rows)
        print(f"{task}: {dict(Counter(row.split for row in rows))}")
    update_readme(options.readme, options.out)


if __name__ == "__main__":
    main()
