"""Texts to model inputs."""

from collections.abc import Callable, Mapping
from typing import Any

from dynprobe.tasks.task import Split

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def encode(split: Split, tokenizer: Callable[..., Mapping[str, Any]], *, max_length: int = 128) -> list[dict[str, Any]]:
    """Tokenise a split into one feature dictionary per example, as transformers' Trainer takes a data set.

    Parameters
    ----------
    split
        Texts, single or pairs, with labels or without.
    tokenizer
        A transformers tokenizer, or anything that is called like one.
    max_length
        Examples are truncated to that many tokens; they are not padded, the Trainer's collator does that per batch.

    Returns
    -------
    list of dict
        ``input_ids`` and whichever of ``attention_mask`` and ``token_type_ids`` the tokenizer gives, as lists of int;
        ``labels`` as int (class) or float (target), absent without labels.

    Raises
    ------
    ValueError
        When `max_length` is less than 1.
    """
    if max_length < 1:
        raise ValueError(f"`max_length` must be at least 1; got {max_length}")
    if len(split) == 0:
        return []
    columns = [list(column) for column in zip(*split.texts, strict=True)]
    encoded = tokenizer(*columns, truncation=True, max_length=max_length)
    names = [name for name in MODEL_INPUTS if name in encoded]
    features: list[dict[str, Any]] = [{name: encoded[name][i] for name in names} for i in range(len(split))]
    if split.labels is not None:
        for feature, label in zip(features, split.labels.tolist(), strict=True):
            feature["labels"] = label
    return features
