"""Read the database files of WordNet 3.0: synsets, glosses, examples, hypernyms, and the base forms of words."""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}

# Numbers of the lexicographer files (`lexnames(5WN)`) that the tasks use.
NOUN_TOPICS = {
    4: "act", 5: "animal", 6: "artifact", 7: "attribute", 8: "body", 9: "cognition", 10: "communication",
    11: "event", 12: "feeling", 13: "food", 14: "group", 15: "location", 16: "motive", 17: "object",
    18: "person", 19: "phenomenon", 20: "plant", 21: "possession", 22: "process", 23: "quantity",
    24: "relation", 25: "shape", 26: "state", 27: "substance", 28: "time",
}  # fmt: skip

# Rules of detachment (`morphy(7WN)`): ending of an inflected word and what replaces it in the base form.
ENDINGS = {
    "n": [("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"),
          ("ies", "y")],
    "v": [("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")],
    "a": [("er", ""), ("est", ""), ("er", "e"), ("est", "e")],
    "r": [],
}  # fmt: skip


@dataclass(frozen=True)
class Synset:
    """One sense: words, definition, example sentences, and pointers to the direct hypernyms."""

    key: str
    pos: str
    lexfile: int
    words: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]
    hypernyms: tuple[str, ...]
    is_instance: bool
    has_children: bool


def read_synsets(folder: Path, pos: str) -> Iterator[Synset]:
    """All synsets of one part of speech (n, v, a, r), in the order of the file."""
    with (folder / f"data.{FILES[pos]}").open(encoding="ascii") as lines:
        for line in lines:
            if not line.startswith("  "):  # the licence
                yield _parse(line, pos)


def read_exceptions(folder: Path, pos: str) -> dict[str, set[str]]:
    """Irregular forms: inflected word to its base forms."""
    exceptions: dict[str, set[str]] = {}
    for line in (folder / f"{FILES[pos]}.exc").read_text(encoding="ascii").splitlines():
        form, *bases = line.split()
        exceptions.setdefault(form, set()).update(bases)
    return exceptions


def base_forms(word: str, pos: str, exceptions: dict[str, set[str]]) -> set[str]:
    """Words of which `word` may be an inflected form, itself included."""
    regular = {word[: -len(end)] + new for end, new in ENDINGS[pos] if word.endswith(end)}
    return {word} | regular | exceptions.get(word, set())


def ancestors(key: str, hypernyms: dict[str, tuple[str, ...]]) -> set[str]:
    """All direct and indirect hypernyms of a synset."""
    found: set[str] = set()
    waiting = [key]
    while waiting:
        for parent in hypernyms[waiting.pop()]:
            if parent not in found:
                found.add(parent)
                waiting.append(parent)
    return found


def split_gloss(gloss: str) -> tuple[str, tuple[str, ...]]:
    """Definition and example sentences of a gloss; no examples where quotation marks do not match."""
    start = re.search(r'(^|;\s*|:\s*)"', gloss)
    definition = gloss if start is None else gloss[: start.start()]
    rest = "" if start is None else gloss[start.start() :]
    quoted = re.findall(r'"([^"]*)"', rest) if rest.count('"') % 2 == 0 else []
    return _clean(definition).rstrip(";: "), tuple(text for text in map(_clean, quoted) if text)


def _parse(line: str, pos: str) -> Synset:
    facts, _, gloss = line.partition(" | ")
    fields = facts.split()
    n_words = int(fields[3], 16)
    words = tuple(re.sub(r"\((a|p|ip)\)$", "", word) for word in fields[4 : 4 + 2 * n_words : 2])
    first = 5 + 2 * n_words
    n_pointers = int(fields[first - 1])
    pointers: dict[str, list[str]] = defaultdict(list)
    for i in range(first, first + 4 * n_pointers, 4):
        pointers[fields[i]].append(fields[i + 2] + fields[i + 1])
    definition, examples = split_gloss(gloss)
    return Synset(
        key=pos + fields[0],
        pos=pos,
        lexfile=int(fields[1]),
        words=words,
        definition=definition,
        examples=examples,
        hypernyms=tuple(pointers["@"] + pointers["@i"]),
        is_instance=bool(pointers["@i"]),
        has_children=bool(pointers["~"] or pointers["~i"]),
    )


def _clean(text: str) -> str:
    return " ".join(text.split())
