"""The fixed inputs on which every snapshot is measured, and their fingerprint.

Two runs can be compared only if every forward pass saw the same inputs, so a :class:`ProbeSet` is frozen, hashed, and chosen by
the content of the examples alone: seeds, versions and the order of the data set do not change the choice.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from dynprobe.errors import ProbeSetError

DEFAULT_N_EXAMPLES = 512
DEFAULT_MAX_LENGTH = 128
DEFAULT_BATCH_SIZE = 32

# Inputs that have one value per position and the value that fills positions beyond the end of an example.
# `input_ids` is filled with the tokenizer's own padding id.
_POSITION_INPUTS = {"attention_mask": 0, "token_type_ids": 0, "decoder_attention_mask": 0, "special_tokens_mask": 1}
_TOKEN_INPUTS = ("input_ids", "decoder_input_ids")


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
        for name in ("inputs", "real", "special"):
            arrays = {key: _read_only(value) for key, value in getattr(self, name).items()}
            object.__setattr__(self, name, MappingProxyType(arrays))
        if self.labels is not None:
            object.__setattr__(self, "labels", _read_only(self.labels))
        object.__setattr__(self, "tokenizer", MappingProxyType(dict(self.tokenizer)))
        _check(self)

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
            Without any text, or when a text has no token.
        """
        fields = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
        features = [
            {name: np.asarray(value) for name, value in encoded.items()}
            for encoded in (
                tokenizer(*texts_, truncation=True, max_length=max_length, return_special_tokens_mask=True)
                for texts_ in fields
            )
        ]
        return cls.from_features(
            features,
            texts=fields,
            labels=labels,
            label_names=label_names,
            n_examples=n_examples,
            max_length=max_length,
            batch_size=batch_size,
            tokenizer=tokenizer,
            origin="texts",
        )

    @classmethod
    def from_features(  # noqa: PLR0913 - one call from tokenised data, each argument an independent fact
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
        origin: str = "features",
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
        n_examples, max_length, batch_size, origin
            As in :class:`ProbeSet` and :meth:`from_texts`.

        Raises
        ------
        ProbeSetError
            Without examples, or when an example has no token.
        """
        if len(features) == 0:
            raise ProbeSetError("a probe set must hold at least one example; got none. Give texts or an evaluation set")
        clean = [_truncated({k: np.asarray(v) for k, v in f.items()}, max_length, tokenizer) for f in features]
        label_array = None if labels is None else np.asarray(labels)
        chosen = choose_examples([_digest(_flat(f)) for f in clean], label_array, n_examples=n_examples)
        pad_id = getattr(tokenizer, "pad_token_id", None) or 0
        side = getattr(tokenizer, "padding_side", "right")
        inputs = _padded([clean[i] for i in chosen], pad_id=pad_id, side=side)
        real, special = _masks(inputs, clean, chosen, tokenizer=tokenizer, side=side)
        inputs.pop("special_tokens_mask", None)
        return cls(
            inputs=inputs,
            real=real,
            special=special,
            labels=None if label_array is None else label_array[chosen],
            label_names=None if label_names is None else tuple(str(name) for name in label_names),
            texts=None if texts is None else tuple(texts[i] for i in chosen),
            batch_size=batch_size,
            tokenizer=describe_tokenizer(tokenizer),
            origin=origin,
        )


def choose_examples(ids: Sequence[str], labels: np.ndarray | None, *, n_examples: int) -> list[int]:
    """Indices of the chosen examples: by content hash, each prefix stratified by label.

    Parameters
    ----------
    ids
        Content hash of each example. Of examples with equal content the first is kept.
    labels
        Class or target of each example, or ``None``. Float targets are stratified by quintile.
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
    first_with_id: dict[str, int] = {}
    for index, content in enumerate(ids):
        first_with_id.setdefault(content, index)
    unique = sorted(first_with_id.items())
    strata = _strata(labels, len(ids))
    members: dict[int, list[int]] = {}
    for _, index in unique:
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


def _truncated(feature: dict[str, np.ndarray], max_length: int, tokenizer: Any) -> dict[str, np.ndarray]:
    """Cut an example to `max_length` positions, keeping a special token that ends it."""
    ids = feature.get("input_ids")
    if ids is None or ids.ndim != 1 or len(ids) <= max_length:
        return feature
    keep = np.arange(max_length)
    if int(ids[-1]) in set(getattr(tokenizer, "all_special_ids", ())):
        keep[-1] = len(ids) - 1
    return {
        name: value[keep] if value.shape[:1] == ids.shape and not name.startswith("decoder_") else value
        for name, value in feature.items()
    }


def _padded(features: list[dict[str, np.ndarray]], *, pad_id: int, side: str) -> dict[str, np.ndarray]:
    names = sorted(set.intersection(*(set(feature) for feature in features)))
    fill = {**dict.fromkeys(_TOKEN_INPUTS, pad_id), **_POSITION_INPUTS}
    inputs = {}
    for name in names:
        values = [feature[name] for feature in features]
        if len({value.shape for value in values}) == 1:
            inputs[name] = np.stack(values)
        elif values[0].ndim == 1:
            inputs[name] = np.stack(_to_length(values, fill.get(name, 0), side))
        else:
            raise ProbeSetError(
                f"input `{name}` must have one shape for all examples, or one value per token; "
                f"got {sorted({value.shape for value in values})[:4]}. Resize the inputs before capture"
            )
    for mask, tokens in (("attention_mask", "input_ids"), ("decoder_attention_mask", "decoder_input_ids")):
        if tokens in inputs and mask not in inputs:
            lengths = [np.ones(len(feature[tokens]), dtype=np.int64) for feature in features]
            inputs[mask] = np.stack(_to_length(lengths, 0, side))
    return inputs


def _to_length(values: list[np.ndarray], fill: int, side: str) -> list[np.ndarray]:
    longest = max(len(value) for value in values)
    pads = [(longest - len(value), 0) if side == "left" else (0, longest - len(value)) for value in values]
    return [np.pad(value, pad, constant_values=fill) for value, pad in zip(values, pads, strict=True)]


def _masks(
    inputs: dict[str, np.ndarray],
    features: list[dict[str, np.ndarray]],
    chosen: list[int],
    *,
    tokenizer: Any,
    side: str,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    real, special = {}, {}
    special_ids = sorted(getattr(tokenizer, "all_special_ids", ()))
    first = "encoder" if "decoder_input_ids" in inputs else "model"
    for stack, tokens, mask in (
        (first, "input_ids", "attention_mask"),
        ("decoder", "decoder_input_ids", "decoder_attention_mask"),
    ):
        if tokens not in inputs:
            continue
        real[stack] = inputs[mask].astype(bool)
        by_tokenizer = inputs.get("special_tokens_mask") if tokens == "input_ids" else None
        found = np.isin(inputs[tokens], special_ids) if by_tokenizer is None else by_tokenizer.astype(bool)
        special[stack] = found & real[stack]
    return real, special


def _check(probe: ProbeSet) -> None:
    if not probe.inputs or probe.n_examples == 0:
        raise ProbeSetError("a probe set must hold at least one example; got none. Give texts or an evaluation set")
    for name, array in probe.inputs.items():
        if len(array) != probe.n_examples:
            raise ProbeSetError(f"input `{name}` must have {probe.n_examples} rows, one per example; got {len(array)}")
    for stack, mask in probe.real.items():
        empty = np.flatnonzero(~mask.any(axis=1))
        if empty.size:
            raise ProbeSetError(
                f"every example must have at least one real token in stack `{stack}`; got none in {empty.size} "
                f"example(s), first at index {empty[0]}. Remove texts that tokenise to nothing"
            )
    if probe.labels is not None and len(probe.labels) != probe.n_examples:
        raise ProbeSetError(f"`labels` must have {probe.n_examples} entries, one per example; got {len(probe.labels)}")
    if probe.texts is not None and len(probe.texts) != probe.n_examples:
        raise ProbeSetError(f"`texts` must have {probe.n_examples} entries, one per example; got {len(probe.texts)}")
    if probe.batch_size < 1:
        raise ProbeSetError(f"`batch_size` must be at least 1; got {probe.batch_size}")


def _read_only(array: Any) -> np.ndarray:
    copy = np.array(array)
    copy.flags.writeable = False
    return copy


def _flat(feature: Mapping[str, np.ndarray]) -> list[Any]:
    return [part for name in sorted(feature) if name != "special_tokens_mask" for part in (name, feature[name])]


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
