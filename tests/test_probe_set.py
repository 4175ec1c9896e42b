"""The probe set: chosen by content, frozen, hashed, and refused with a reason when it cannot be one."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from dynprobe.errors import ProbeSetError
from dynprobe.probe_set import ProbeSet, choose_examples, describe_tokenizer

VOCABULARY = {name: i for i, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"])}
VOCABULARY |= {f"##{letter}": 30 + i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
PAD, UNK, CLS, SEP = range(4)


def _fast(*, template=True, **options):
    tokenizer = Tokenizer(WordPiece(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    if template:
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
        )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names, **options)


@pytest.fixture(scope="module")
def tokenizer():
    return _fast()


def _ids(text):
    return [VOCABULARY[letter] for letter in text]


def _probe(**changes):
    ids = np.array([[2, 7, 3, 0], [2, 8, 9, 3]])
    parts = {
        "inputs": {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)},
        "real": {"model": ids > 0},
        "special": {"model": (ids == 2) | (ids == 3)},
        "labels": np.array([1, 0]),
    }
    return ProbeSet(**{**parts, **changes})


# From texts


def test_texts_by_hand(tokenizer):
    probe = ProbeSet.from_texts(["a", "b c"], tokenizer, labels=[0, 1], label_names=["no", "yes"], batch_size=4)
    order = [text[0] for text in probe.texts]
    assert sorted(order) == ["a", "b c"]
    short, long = order.index("a"), order.index("b c")
    assert probe.inputs["input_ids"][short].tolist() == [CLS, *_ids("a"), SEP, PAD]
    assert probe.inputs["input_ids"][long].tolist() == [CLS, *_ids("bc"), SEP]
    assert probe.real["model"][short].tolist() == [True, True, True, False]
    assert probe.special["model"][short].tolist() == [True, False, True, False]
    assert probe.labels[[short, long]].tolist() == [0, 1]
    assert probe.label_names == ("no", "yes")
    assert set(probe.inputs) == {"input_ids", "attention_mask", "token_type_ids"}
    assert (probe.n_examples, probe.n_real_tokens("model"), probe.batch_size) == (2, 7, 4)
    assert (probe.stacks, probe.origin) == (("model",), "texts")
    assert probe.tokenizer["padding_side"] == "right"


def test_pairs_have_token_types(tokenizer):
    probe = ProbeSet.from_texts([("a", "b c"), ("d", "e")], tokenizer)
    row = probe.texts.index(("d", "e"))
    assert probe.inputs["input_ids"][row].tolist() == [CLS, *_ids("d"), SEP, *_ids("e"), SEP, PAD]
    assert probe.inputs["token_type_ids"][row].tolist() == [0, 0, 0, 1, 1, 0]


def test_padding_on_the_left():
    probe = ProbeSet.from_texts(["a", "b c"], _fast(padding_side="left"))
    row = probe.texts.index(("a",))
    assert probe.inputs["input_ids"][row].tolist() == [PAD, CLS, *_ids("a"), SEP]
    assert probe.real["model"][row].tolist() == [False, True, True, True]


def test_truncation_keeps_the_end_of_the_text(tokenizer):
    probe = ProbeSet.from_texts(["a b c d e"], tokenizer, max_length=4)
    assert probe.inputs["input_ids"].tolist() == [[CLS, *_ids("ab"), SEP]]


def test_features_are_truncated_before_their_final_special_token(tokenizer):
    features = [{"input_ids": [CLS, *_ids("abcd"), SEP], "token_type_ids": [0, 0, 0, 1, 1, 1]}]
    probe = ProbeSet.from_features(features, tokenizer=tokenizer, max_length=4)
    assert probe.inputs["input_ids"].tolist() == [[CLS, *_ids("ab"), SEP]]
    assert probe.inputs["token_type_ids"].tolist() == [[0, 0, 0, 1]]
    assert probe.inputs["attention_mask"].tolist() == [[1, 1, 1, 1]]


def test_features_without_a_final_special_token_are_cut(tokenizer):
    probe = ProbeSet.from_features([{"input_ids": _ids("abcd")}], tokenizer=tokenizer, max_length=3)
    assert probe.inputs["input_ids"].tolist() == [_ids("abc")]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_the_features_changes_nothing(side):
    tokenizer = _fast(padding_side=side)
    texts = ["a b c", "d", "e f", "g h i j"]
    plain = [tokenizer(text) for text in texts]
    padded = [tokenizer(text, padding="max_length", max_length=9) for text in texts]
    first, second = (
        ProbeSet.from_features(features, tokenizer=tokenizer, max_length=5, n_examples=3)
        for features in (plain, padded)
    )
    assert first.fingerprint == second.fingerprint
    assert (first.inputs["input_ids"] == SEP).sum() == 3


def test_texts_and_features_agree_on_special_tokens(tokenizer):
    """An unknown word is a word for both, though its id is in the tokenizer's list of special ones."""
    from_texts = ProbeSet.from_texts(["a ?", "b"], tokenizer)
    from_features = ProbeSet.from_features([tokenizer("a ?"), tokenizer("b")], tokenizer=tokenizer)
    assert UNK in from_texts.inputs["input_ids"]
    assert from_texts.special["model"].sum() == 4
    assert from_texts.fingerprint == from_features.fingerprint


def test_unknown_word_that_also_ends_a_text_is_special():
    class Gpt:
        all_special_ids = (9,)
        unk_token_id = bos_token_id = eos_token_id = 9

    probe = ProbeSet.from_features([{"input_ids": [4, 9]}], tokenizer=Gpt())
    assert probe.special["model"].tolist() == [[False, True]]


def test_encoder_and_decoder():
    features = [
        {"input_ids": [4, 5, 6], "decoder_input_ids": [0, 7]},
        {"input_ids": [4], "decoder_input_ids": [0, 8, 9, 1]},
    ]
    probe = ProbeSet.from_features(features, max_length=3)
    assert probe.stacks == ("encoder", "decoder")
    assert probe.inputs["decoder_attention_mask"].sum() == 5
    assert probe.n_real_tokens("encoder") == 4
    assert probe.n_real_tokens("decoder") == 5


def test_values_with_more_axes_follow_their_tokens():
    boxes = np.arange(12).reshape(3, 4)
    features = [{"input_ids": [4, 5, 6], "bbox": boxes}, {"input_ids": [7], "bbox": boxes[:1]}]
    probe = ProbeSet.from_features(features)
    row = int(np.flatnonzero(probe.inputs["input_ids"][:, 0] == 7)[0])
    assert probe.inputs["bbox"].shape == (2, 3, 4)
    assert probe.inputs["bbox"][row].tolist() == [[0, 1, 2, 3], [0] * 4, [0] * 4]


def test_images_need_no_masks():
    images = np.arange(24.0, dtype=np.float32).reshape(2, 3, 2, 2)
    probe = ProbeSet.from_features([{"pixel_values": image} for image in images])
    assert probe.inputs["pixel_values"].shape == (2, 3, 2, 2)
    assert dict(probe.real) == {}


def test_tokenizer_is_described(tokenizer):
    assert describe_tokenizer(None) == {}
    assert describe_tokenizer(tokenizer)["padding_side"] == "right"
    assert describe_tokenizer(object()) == {"class": "object"}


# The choice


@st.composite
def labelled(draw):
    ids = draw(st.lists(st.integers(0, 10**6), min_size=1, max_size=60, unique=True))
    labels = draw(st.lists(st.integers(0, 3), min_size=len(ids), max_size=len(ids)))
    return [f"{i:07d}" for i in ids], np.array(labels)


@given(labelled())
def test_every_prefix_is_stratified(case):
    """Within half an example of its share, plus half an example of each class shared out: the rounding of the ranks."""
    ids, labels = case
    chosen = choose_examples(ids, labels, n_examples=len(ids))
    assert sorted(chosen) == list(range(len(ids)))
    classes, sizes = np.unique(labels, return_counts=True)
    for m in range(1, len(ids) + 1):
        got = (labels[chosen[:m]][:, None] == classes).sum(axis=0)
        bound = 0.5 + len(classes) / 2 * sizes / len(ids)
        assert np.all(np.abs(got - m * sizes / len(ids)) <= bound + 1e-9)


@given(labelled(), st.integers(1, 60))
def test_smaller_choice_is_the_start_of_a_larger_one(case, m):
    ids, labels = case
    assert choose_examples(ids, labels, n_examples=m) == choose_examples(ids, labels, n_examples=60)[:m]


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), min_size=1, max_size=30),
    st.integers(1, 20),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_order_of_the_data_changes_nothing(examples, m, as_floats, random):
    """Also with examples of equal content and different labels."""
    shuffled = random.sample(examples, len(examples))
    dtype = float if as_floats else int
    chosen = []
    for version in (examples, shuffled):
        ids, labels = [f"{i:03d}" for i, _ in version], np.array([label for _, label in version], dtype=dtype)
        chosen.append([(ids[i], labels[i]) for i in choose_examples(ids, labels, n_examples=m)])
    assert chosen[0] == chosen[1]


def test_order_of_texts_changes_nothing(tokenizer):
    texts = [f"{a} {b}" for a in "abcdef" for b in "ghij"]
    labels = [i % 3 for i in range(len(texts))]
    one = ProbeSet.from_texts(texts, tokenizer, labels=labels, n_examples=10)
    other = ProbeSet.from_texts(texts[::-1], tokenizer, labels=labels[::-1], n_examples=10)
    assert one.n_examples == 10
    assert (one.fingerprint, one.label_fingerprint) == (other.fingerprint, other.label_fingerprint)
    assert one.texts == other.texts


def test_equal_examples_are_kept_once(tokenizer):
    probe = ProbeSet.from_texts(["a", "b", "a"], tokenizer, labels=[2, 1, 0])
    assert probe.n_examples == 2
    assert probe.labels[probe.texts.index(("a",))] == 0
    assert len(set(probe.example_ids)) == 2


def test_float_labels_are_stratified_by_quintile():
    labels = np.arange(100) / 7
    chosen = choose_examples([f"{(37 * i) % 100:03d}" for i in range(100)], labels, n_examples=10)
    assert np.bincount(np.array(chosen) // 20).tolist() == [2] * 5


def test_labels_with_several_columns_are_kept(tokenizer):
    probe = ProbeSet.from_texts(["a", "b"], tokenizer, labels=np.array([[1, 0], [0, 1]]))
    assert probe.labels.shape == (2, 2)


# The fingerprint


def _changed(array, index):
    array = np.array(array)
    array[index] = array[index] ^ 1
    return array


@pytest.mark.parametrize("kind", ["inputs", "real", "special"])
def test_fingerprint_changes_with_every_value(kind):
    plain = _probe()
    for name, array in getattr(plain, kind).items():
        for index in np.ndindex(array.shape):
            changed = {**getattr(plain, kind), name: _changed(array, index)}
            assert _probe(**{kind: changed}).fingerprint != plain.fingerprint


def test_fingerprint_changes_with_names_and_shapes():
    plain = _probe()
    renamed = {"ids": plain.inputs["input_ids"], "attention_mask": plain.inputs["attention_mask"]}
    more = {**plain.inputs, "token_type_ids": np.zeros((2, 4), dtype=int)}
    prints = {_probe(inputs=inputs).fingerprint for inputs in (plain.inputs, renamed, more)}
    flat = {
        ProbeSet(inputs={"x": np.zeros(s)}, real={}, special={}).fingerprint for s in [(2, 6), (2, 2, 3), (2, 3, 2)]
    }
    assert (len(prints), len(flat)) == (3, 3)


def test_fingerprint_is_blind_to_labels_and_width():
    plain = _probe()
    narrow = {name: array.astype("i2") for name, array in plain.inputs.items()}
    for other in (
        _probe(labels=None),
        _probe(labels=np.array([0, 0])),
        _probe(texts=(("x",), ("y",)), batch_size=7, origin="there"),
        _probe(inputs=narrow),
        _probe(inputs=dict(reversed(plain.inputs.items()))),
        _probe(real={"model": plain.real["model"].astype(int)}),
    ):
        assert other.fingerprint == plain.fingerprint


def test_fingerprint_is_the_same_for_ever():
    """Recomputed here from the words of FORMAT.md."""
    import hashlib

    digest = hashlib.sha256()
    digest.update(b"inputs/input_ids\0" + b"i(1, 2)" + np.array([5, 6], "<i8").tobytes())
    digest.update(b"real/model\0" + b"b(1, 2)" + bytes([1, 0]))
    digest.update(b"special/model\0" + b"b(1, 2)" + bytes([0, 0]))
    mask = np.array([[True, False]])
    probe = ProbeSet(inputs={"input_ids": np.array([[5, 6]])}, real={"model": mask}, special={"model": mask & False})
    assert probe.fingerprint == digest.hexdigest()


def test_label_fingerprint():
    prints = {
        _probe(labels=np.array([0, 1])).label_fingerprint,
        _probe(labels=np.array([1, 0])).label_fingerprint,
        _probe(labels=np.array([1.0, 0.0])).label_fingerprint,
        _probe(label_names=("no", "yes")).label_fingerprint,
        _probe(labels=None).label_fingerprint,
    }
    assert len(prints) == 5
    assert _probe(labels=np.array([True, False])).label_fingerprint == _probe().label_fingerprint


# Frozen


def test_arrays_are_read_only_copies():
    source = np.array([[5, 6]])
    probe = ProbeSet(inputs={"x": source}, real={}, special={}, labels=[1])
    source[0, 0] = 9
    assert probe.inputs["x"].tolist() == [[5, 6]]
    for array in (probe.inputs["x"], probe.labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(TypeError, match="does not support item assignment"):
        probe.inputs["x"] = source
    with pytest.raises(AttributeError, match="cannot assign to field"):
        probe.batch_size = 3


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda probe: pickle.loads(pickle.dumps(probe))])
def test_copies_are_equal_and_frozen(copied):
    probe = _probe(texts=(("x",), ("y",)), label_names=("no", "yes"), tokenizer={"class": "T"}, origin="hand")
    other = copied(probe)
    assert (other.fingerprint, other.label_fingerprint) == (probe.fingerprint, probe.label_fingerprint)
    for name in ("texts", "label_names", "batch_size", "tokenizer", "origin"):
        assert getattr(other, name) == getattr(probe, name)
    with pytest.raises(ValueError, match="read-only"):
        other.inputs["input_ids"][0] = 1
    with pytest.raises(ValueError, match="read-only"):
        other.labels[0] = 1
    with pytest.raises(TypeError, match="does not support item assignment"):
        other.real["model"] = 1


# What cannot be a probe set


def _texts(texts, **options):
    return lambda: ProbeSet.from_texts(texts, _fast(template=options.pop("template", True)), **options)


def _features(*features, **options):
    return lambda: ProbeSet.from_features(features, **options)


IDS = {"input_ids": [4, 5]}
ROW = {"input_ids": np.ones((2, 4), dtype=int)}
NO_TOKEN = "at least one real token in stack `model`; got none in 1 example"

REFUSED = {
    "no text": (_texts([]), "must hold at least one example; got none. Give texts"),
    "a single text": (_texts("abc"), "`texts` must be a list with one text or pair .* got a single text"),
    "a missing text": (_texts(["a", None]), "example 1: must be one text or a pair of texts; got None"),
    "three texts": (_texts([("a", "b", "c")]), "example 0: must be one text or a pair of texts"),
    "no part": (_texts([()]), "example 0: must be one text or a pair of texts"),
    "empty text": (_texts(["a", ""], template=False), rf"{NO_TOKEN}\(s\), first at index 1. Remove texts"),
    "no length": (_texts(["a"], max_length=0), "`max_length` must be at least 1; got 0"),
    "no examples wanted": (_texts(["a"], n_examples=0), "`n_examples` must be at least 1; got 0"),
    "no batch": (_texts(["a"], batch_size=0), "`batch_size` must be at least 1; got 0"),
    "label missing": (_texts(["a", "b"], labels=[1]), "`labels` must have 2 entries, one per example; got 1"),
    "nan label": (_texts(["a", "b"], labels=[1.0, float("nan")]), r"`labels` must be finite; got NaN .* first at index 1"),
    "inf label": (_texts(["a"], labels=[float("inf")]), "`labels` must be finite; got NaN or Inf"),
    "none label": (_texts(["a", "b"], labels=[1, None]), "`labels` must be class indices or numbers.*got object"),
    "named label": (_texts(["a"], labels=["yes"]), "`labels` must be class indices .* Give the names .* `label_names`"),
    "ragged labels": (_texts(["a", "b"], labels=[[1], [1, 2]]), "`labels` must be an array of numbers; got setting"),
    "scalar label": (_texts(["a"], labels=3), r"`labels` must be class indices or numbers.*of shape \(\)"),
    "no features": (_features(), "must hold at least one example"),
    "all padding": (_features(IDS, {**IDS, "attention_mask": [0, 0]}), rf"{NO_TOKEN}\(s\), first at index 1"),
    "only padding": (_features({**IDS, "attention_mask": [0, 0]}), NO_TOKEN),
    "empty decoder": (_features({**IDS, "decoder_input_ids": []}), "real token in stack `decoder`"),
    "short mask": (_features({**IDS, "attention_mask": [1]}), r"example 0: `attention_mask` must have one value per token"),
    "short types": (
        _features(IDS | {"token_type_ids": [0, 0]}, IDS | {"token_type_ids": [0]}),
        r"example 1: `token_type_ids` must have one value per token of `input_ids`, 2; got shape \(1,\)",
    ),
    "batch axis": (_features({"input_ids": [[4, 5]]}), r"example 0: `input_ids` must have one axis, without a batch"),
    "other inputs": (
        _features(IDS, {**IDS, "extra": 1}),
        r"example 1: must have the inputs of the first example, \['attention_mask', 'input_ids'\]; got",
    ),
    "ragged image": (_features({"pixel_values": [[1, 2], [3]]}), "example 0: input `pixel_values` must be an array of numbers"),
    "ragged images": (
        _features({"pixel_values": np.ones((3, 4, 4))}, {"pixel_values": np.ones((3, 4, 5))}),
        r"input `pixel_values` must have one shape for all examples.* got \[\(3, 4, 4\), \(3, 4, 5\)\]. Resize",
    ),
    "images of other heights": (
        _features({"pixel_values": np.ones((4, 4, 3))}, {"pixel_values": np.ones((5, 4, 3))}),
        "input `pixel_values` must have one shape for all examples",
    ),
    "few texts": (_features(IDS, {"input_ids": [6]}, texts=[("a",)]), "`texts` must have 2 entries"),
    "text as input": (_features({**IDS, "idx": "a"}), "example 0: input `idx` must be an array of numbers; got <U1"),
    "nothing as input": (_features({**IDS, "idx": None}), "example 0: input `idx` must be an array of numbers; got object"),
    "nothing": (lambda: ProbeSet(inputs={}, real={}, special={}), "must hold at least one example"),
    "no row": (lambda: ProbeSet(inputs={"x": np.ones((0, 2))}, real={}, special={}), "must hold at least one example"),
    "scalar input": (lambda: ProbeSet(inputs={"x": 1}, real={}, special={}), "input `x` must be an array of numbers"),
    "fewer rows": (lambda: _probe(inputs={**ROW, "x": np.ones(3)}), "input `x` must have 2 rows, one per example; got 3"),
    "short real": (
        lambda: _probe(real={"model": np.ones((2, 3), bool)}),
        r"`real\['model'\]` must have one value per example and position, \(2, 4\); got shape \(2, 3\)",
    ),
    "flat special": (lambda: _probe(special={"model": np.ones(2, bool)}), r"`special\['model'\]` must have one value"),
    "nothing real": (lambda: _probe(real={"model": np.zeros((2, 4), bool)}), "got none in 2 example"),
    "labels of another set": (lambda: _probe(labels=[1]), "`labels` must have 2 entries"),
    "texts of another set": (lambda: _probe(texts=(("a",),)), "`texts` must have 2 entries"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    make, message = REFUSED[case]
    with pytest.raises(ProbeSetError, match=message):
        make()
