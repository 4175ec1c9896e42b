"""The fixed inputs on which every snapshot is measured, and their fingerprint.

Two runs can be compared only if every forward pass saw the same inputs, so a :class:`ProbeSet` is frozen, hashed, and chosen by
the content of the examples alone: seeds, versions and the order of the data set do not change the choice.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any

import numpy as np

from dynprobe.errors import ProbeSetError
from dynprobe.probe_inputs import (
    SPECIAL_TOKENS_MASK,
    as_array,
    pad_examples,
    position_masks,
    prepare_examples,
    require_tokens,
    text_parts,
)

DEFAULT_N_EXAMPLES = 512
DEFAULT_MAX_LENGTH = 128
DEFAULT_BATCH_SIZE = 32

_NO_EXAMPLE = "a probe set must hold at least one example; got none. Give texts or an evaluation set"


@dataclass(frozen=True, eq=False)
class ProbeSet:
    """Fixed model inputs with masks, optional labels and texts; frozen, compared by :attr:`fingerprint`.

    Attributes
    ----------
    inputs
        Exactly what the model's forward takes: name to array of shape (n_examples, ...), padded to a common length.
    real
        Stack name to a boolean array (n_examples, n_positions): true where a token is no padding. A stack that is
        not named (images) has only real positions.
    special
        Stack name to a boolean array of the same shape: true at [CLS], [SEP], <s> and the like.
    labels
        Class indices (integers), regression targets (floats), or ``None``.
    label_names
        Name of each class index, or ``None``.
    texts
        One tuple of texts per example, or ``None`` when only tokens are known.
    batch_size
        Number of examples in one forward pass. Fixed, because rounding depends on the shape of a batch.
    tokenizer
        Name and class of the tokenizer, for the reader of a report.
    origin
        Where the examples come from, in words, such as ``"evaluation data"``.

    Examples
    --------
    >>> ids = np.array([[5, 6, 0]])
    >>> probe = ProbeSet(inputs={"input_ids": ids}, real={"model": ids > 0}, special={"model": ids < 0})
    >>> probe.n_examples, probe.n_real_tokens("model")
    (1, 2)
    """

    inputs: Mapping[str, np.ndarray]
    real: Mapping[str, np.ndarray]
    special: Mapping[str, np.ndarray]
    labels: np.ndarray | None = None
    label_names: tuple[str, ...] | None = None
    texts: tuple[tuple[str, ...], ...] | None = None
    batch_size: int = DEFAULT_BATCH_SIZE
    tokenizer: Mapping[str, str] = field(default_factory=dict)
    origin: str = "unknown"

    def __post_init__(self) -> None:
        for name, dtype in (("inputs", None), ("real", bool), ("special", bool)):
            arrays = {key: _read_only(value, dtype) for key, value in getattr(self, name).items()}
            object.__setattr__(self, name, MappingProxyType(arrays))
        object.__setattr__(self, "tokenizer", MappingProxyType(dict(self.tokenizer)))
        _check(self)
        if self.labels is not None:
            object.__setattr__(self, "labels", _read_only(_labels(self.labels, self.n_examples)))

    def __reduce__(self) -> tuple[Any, ...]:
        # Built anew from its fields: read-only mappings cannot be pickled, and pickled arrays would come back writeable.
        state: dict[str, Any] = {field_.name: getattr(self, field_.name) for field_ in fields(self)}
        plain: dict[str, Any] = {
            name: dict(value) if isinstance(value, MappingProxyType) else value for name, value in state.items()
        }
        return partial(type(self), **plain), ()

    @property
    def n_examples(self) -> int:
        """Number of examples."""
        return len(next(iter(self.inputs.values())))

    @property
    def stacks(self) -> tuple[str, ...]:
        """Stacks whose tokens the inputs describe: ``("model",)`` or ``("encoder", "decoder")``."""
        return ("encoder", "decoder") if "decoder_input_ids" in self.inputs else ("model",)

    def n_real_tokens(self, stack: str) -> int:
        """Number of tokens of a stack that are no padding, summed over the examples."""
        return int(self.real[stack].sum())

    @cached_property
    def example_ids(self) -> tuple[str, ...]:
        """Content hash of each example's inputs (16 hexadecimal digits)."""
        names = sorted(self.inputs)
        return tuple(_digest([self.inputs[name][i] for name in names])[:16] for i in range(self.n_examples))

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 of inputs and masks; two runs can be compared when it is equal."""
        parts: list[Any] = []
        for kind in ("inputs", "real", "special"):
            arrays = getattr(self, kind)
            for name in sorted(arrays):
                parts += [f"{kind}/{name}", arrays[name]]
        return _digest(parts)

    @cached_property
    def label_fingerprint(self) -> str | None:
        """Sha256 of the labels, or ``None`` without labels."""
        return None if self.labels is None else _digest([self.labels, "\0".join(self.label_names or ())])

    @classmethod
    def from_texts(
        cls,
        texts: Sequence[str | Sequence[str]],
        tokenizer: Callable[..., Mapping[str, Any]],
        *,
        labels: Sequence[int] | Sequence[float] | np.ndarray | None = None,
        label_names: Sequence[str] | None = None,
        n_examples: int = DEFAULT_N_EXAMPLES,
        max_length: int = DEFAULT_MAX_LENGTH,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> "ProbeSet":
        """Tokenise texts or text pairs and choose the examples of the probe set.

        Parameters
        ----------
        texts
            One text, or one tuple of two texts, per example.
        tokenizer
            A transformers tokenizer, or anything that is called like one.
        labels, label_names
            One label per text; the choice is stratified by them.
        n_examples
            At most that many examples are kept, chosen by content hash.
        max_length
            Examples are truncated to that many tokens.
        batch_size
            Number of examples in one forward pass.

        Raises
        ------
        ProbeSetError
            Without any text, or when a text has no token or a label is missing.
        """
        if isinstance(texts, str):
            raise ProbeSetError("`texts` must be a list with one text or pair of texts per example; got a single text")
        _require_positive(max_length=max_length)
        parts = [text_parts(text, index) for index, text in enumerate(texts)]
        options = {"truncation": True, "max_length": max_length, "return_special_tokens_mask": True}
        features = [tokenizer(*texts_, **options) for texts_ in parts]
        return cls.from_features(
            features,
            texts=parts,
            labels=labels,
            label_names=label_names,
            n_examples=n_examples,
            max_length=max_length,
            batch_size=batch_size,
            tokenizer=tokenizer,
        )

    @classmethod
    def from_features(
        cls,
        features: Sequence[Mapping[str, Any]],
        *,
        tokenizer: Any = None,
        texts: Sequence[tuple[str, ...]] | None = None,
        labels: Sequence[int] | Sequence[float] | np.ndarray | None = None,
        label_names: Sequence[str] | None = None,
        n_examples: int = DEFAULT_N_EXAMPLES,
        max_length: int = DEFAULT_MAX_LENGTH,
        batch_size: int = DEFAULT_BATCH_SIZE,
    ) -> "ProbeSet":
        """Choose and pad examples that are already model inputs.

        Parameters
        ----------
        features
            One mapping per example: input name to array without a batch axis, as a tokenised data set yields them.
        tokenizer
            Gives padding id, padding side and special tokens; without it padding is 0, on the right.
        texts, labels, label_names
            One entry per example; labels stratify the choice.
        n_examples, max_length, batch_size
            As in :meth:`from_texts`.

        Raises
        ------
        ProbeSetError
            Without examples, or when an example has no token.
        """
        if len(features) == 0:
            raise ProbeSetError(_NO_EXAMPLE)
        _require_positive(n_examples=n_examples, max_length=max_length)
        examples = prepare_examples(features, tokenizer, max_length=max_length)
        if texts is not None:
            _require_count("texts", texts, len(features))
        label_array = None if labels is None else _labels(labels, len(features))
        chosen = choose_examples([_digest(_flat(example)) for example in examples], label_array, n_examples=n_examples)
        inputs = pad_examples([examples[i] for i in chosen], tokenizer)
        real, special = position_masks(inputs, tokenizer)
        return cls(
            inputs={name: array for name, array in inputs.items() if name != SPECIAL_TOKENS_MASK},
            real=real,
            special=special,
            labels=None if label_array is None else label_array[chosen],
            label_names=None if label_names is None else tuple(str(name) for name in label_names),
            texts=None if texts is None else tuple(texts[i] for i in chosen),
            batch_size=batch_size,
            tokenizer=describe_tokenizer(tokenizer),
            origin="features" if texts is None else "texts",
        )


def choose_examples(ids: Sequence[str], labels: np.ndarray | None, *, n_examples: int) -> list[int]:
    """Indices of the chosen examples: by content hash, each prefix stratified by label.

    Parameters
    ----------
    ids
        Content hash of each example. Of examples with equal content the one with the smallest label is kept.
    labels
        Finite class or target of each example, or ``None``. Float targets are stratified by quintile.
    n_examples
        Number of examples to choose; all when there are fewer.

    Returns
    -------
    list of int
        Ordered so that the first m examples of the list are themselves a stratified choice of m.

    Examples
    --------
    >>> choose_examples(["c", "a", "b", "d"], np.array([0, 0, 1, 1]), n_examples=2)
    [1, 2]
    """
    strata = _strata(labels, len(ids))
    values = strata if labels is None or labels.ndim != 1 else labels
    one_of_each: dict[str, int] = {}
    for index in sorted(range(len(ids)), key=lambda i: (ids[i], values[i], i)):
        one_of_each.setdefault(ids[index], index)
    members: dict[int, list[int]] = {}
    for index in one_of_each.values():
        members.setdefault(int(strata[index]), []).append(index)
    # The i-th of n members of a class stands at fraction (i + 1/2) / n, so every prefix has each class in proportion.
    order = sorted(
        ((rank + 0.5) / len(group), stratum, index)
        for stratum, group in members.items()
        for rank, index in enumerate(group)
    )
    return [index for _, _, index in order[:n_examples]]


def describe_tokenizer(tokenizer: Any) -> dict[str, str]:
    """Name, class and padding side of a tokenizer; empty when there is none."""
    if tokenizer is None:
        return {}
    facts = {"class": type(tokenizer).__name__}
    for key, attribute in (("name", "name_or_path"), ("padding_side", "padding_side")):
        if isinstance(getattr(tokenizer, attribute, None), str):
            facts[key] = getattr(tokenizer, attribute)
    return facts


def _strata(labels: np.ndarray | None, n: int) -> np.ndarray:
    if labels is None or labels.ndim != 1:
        return np.zeros(n, dtype=int)
    if labels.dtype.kind == "f":
        return np.searchsorted(np.quantile(labels, [0.2, 0.4, 0.6, 0.8]), labels)
    return np.unique(labels, return_inverse=True)[1]


def _check(probe: ProbeSet) -> None:
    for name, array in probe.inputs.items():
        if array.ndim == 0 or array.dtype.kind not in "biuf":
            raise ProbeSetError(
                f"input `{name}` must be an array of numbers with one row per example; got {array.dtype} {array.shape}"
            )
    if not probe.inputs or probe.n_examples == 0:
        raise ProbeSetError(_NO_EXAMPLE)
    for name, array in probe.inputs.items():
        if len(array) != probe.n_examples:
            raise ProbeSetError(f"input `{name}` must have {probe.n_examples} rows, one per example; got {len(array)}")
    for kind in ("real", "special"):
        for stack, mask in getattr(probe, kind).items():
            tokens = probe.inputs.get("decoder_input_ids" if stack == "decoder" else "input_ids")
            if mask.ndim != 2 or len(mask) != probe.n_examples or (tokens is not None and mask.shape != tokens.shape):
                raise ProbeSetError(
                    f"`{kind}[{stack!r}]` must have one value per example and position"
                    f"{'' if tokens is None else f', {tokens.shape}'}; got shape {mask.shape}"
                )
    for stack, mask in probe.real.items():
        require_tokens(mask.any(axis=1), stack)
    if probe.texts is not None:
        _require_count("texts", probe.texts, probe.n_examples)
    _require_positive(batch_size=probe.batch_size)


def _require_count(name: str, values: Sequence[Any] | np.ndarray, n_examples: int) -> None:
    if len(values) != n_examples:
        raise ProbeSetError(f"`{name}` must have {n_examples} entries, one per example; got {len(values)}")


def _require_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ProbeSetError(f"`{name}` must be at least 1; got {number}")


def _labels(labels: Any, n_examples: int) -> np.ndarray:
    array = as_array(labels, "`labels`")
    if array.ndim == 0 or array.dtype.kind not in "biuf":
        raise ProbeSetError(
            f"`labels` must be class indices or numbers, one per example; got {array.dtype} of shape {array.shape}. "
            "Give the names of the classes as `label_names`"
        )
    _require_count("labels", array, n_examples)
    unknown = np.flatnonzero(~np.isfinite(array).reshape(n_examples, -1).all(axis=1))
    if unknown.size:
        raise ProbeSetError(
            f"`labels` must be finite; got NaN or Inf in {unknown.size} example(s), first at index {unknown[0]}. "
            "Remove examples without a label"
        )
    return array.astype(np.int64) if array.dtype.kind == "b" else array


def _read_only(array: Any, dtype: type | None = None) -> np.ndarray:
    copy = np.array(array, dtype=dtype)
    copy.flags.writeable = False
    return copy


def _flat(feature: Mapping[str, np.ndarray]) -> list[Any]:
    return [part for name in sorted(feature) if name != SPECIAL_TOKENS_MASK for part in (name, feature[name])]


def _digest(parts: Sequence[Any]) -> str:
    """Sha256 of strings and arrays, the same on every platform: fixed widths, little-endian, shapes included."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode() + b"\0")
            continue
        kind = part.dtype.kind
        wide = part.astype({"b": "<u1", "f": "<f4"}.get(kind, "<i8"))
        digest.update(f"{kind}{wide.shape}".encode() + np.ascontiguousarray(wide).tobytes())
    return digest.hexdigest()
