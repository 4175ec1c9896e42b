"""From tokenised examples to the arrays of a probe set: checked, without old padding, cut, padded, with their masks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dynprobe.errors import ProbeSetError

# Inputs that have one value per position and the value that fills positions beyond the end of an example.
# `input_ids` is filled with the tokenizer's own padding id.
_POSITION_INPUTS = {"attention_mask": 0, "token_type_ids": 0, "decoder_attention_mask": 0, "special_tokens_mask": 1}
# Token inputs, and the mask that says which of their positions are real.
_TOKEN_INPUTS = {"input_ids": "attention_mask", "decoder_input_ids": "decoder_attention_mask"}
SPECIAL_TOKENS_MASK = "special_tokens_mask"


def prepare_examples(
    features: Sequence[Mapping[str, Any]], tokenizer: Any, *, max_length: int
) -> list[dict[str, np.ndarray]]:
    """Check examples and bring them to one form: arrays with attention masks, without padding, cut.

    Padding at both ends is taken away first, so that neither the choice of examples nor the cut depends on it.

    Parameters
    ----------
    features
        One mapping per example: input name to values without a batch axis.
    tokenizer
        Its special tokens are kept at the end of an example that is cut; may be ``None``.
    max_length
        Number of tokens to which an example is cut.

    Returns
    -------
    list of dict
        Equal keys for all examples.

    Raises
    ------
    ProbeSetError
        When examples differ in their inputs, an input has not one value per token, or an example has no token.

    Examples
    --------
    >>> padded = {"input_ids": [7, 8, 0], "attention_mask": [1, 1, 0]}
    >>> prepare_examples([padded], None, max_length=8)[0]["input_ids"].tolist()
    [7, 8]
    """
    special_ids = _special_ids(tokenizer)
    examples = [_example(f, i, max_length=max_length, special_ids=special_ids) for i, f in enumerate(features)]
    for index, example in enumerate(examples):
        if set(example) != set(examples[0]):
            raise ProbeSetError(
                f"example {index}: must have the inputs of the first example, {sorted(examples[0])}; got {sorted(example)}"
            )
    for tokens, stack in _stacks(examples[0]).items():
        require_tokens(np.array([len(example[tokens]) > 0 for example in examples]), stack)
    return examples


def pad_examples(examples: Sequence[Mapping[str, np.ndarray]], tokenizer: Any) -> dict[str, np.ndarray]:
    """Stack examples, padding what has one value per token to the longest of them.

    Parameters
    ----------
    examples
        As :func:`prepare_examples` returns them.
    tokenizer
        Gives padding id and side; without it padding is 0, on the right.

    Raises
    ------
    ProbeSetError
        When another input, such as an image, has not the same shape in all examples.

    Examples
    --------
    >>> examples = [{"input_ids": np.array([7])}, {"input_ids": np.array([8, 9])}]
    >>> pad_examples(examples, None)["input_ids"].tolist()
    [[7, 0], [8, 9]]
    """
    fill = {**dict.fromkeys(_TOKEN_INPUTS, getattr(tokenizer, "pad_token_id", None) or 0), **_POSITION_INPUTS}
    side = getattr(tokenizer, "padding_side", "right")
    inputs = {}
    for name in sorted(examples[0]):
        values = [example[name] for example in examples]
        lengths = [example[_tokens_of(name)].shape if _tokens_of(name) in example else None for example in examples]
        per_token = values[0].ndim == 1 or [value.shape[:1] for value in values] == lengths
        if len({value.shape for value in values}) == 1:
            inputs[name] = np.stack(values)
        elif per_token and len({value.shape[1:] for value in values}) == 1:
            inputs[name] = np.stack(_to_length(values, fill.get(name, 0), side))
        else:
            raise ProbeSetError(
                f"input `{name}` must have one shape for all examples, or one value per token; "
                f"got {sorted({value.shape for value in values})[:4]}. Resize the inputs before capture"
            )
    return inputs


def position_masks(
    inputs: Mapping[str, np.ndarray], tokenizer: Any
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Which positions are no padding, and which of those are special tokens; each by stack.

    Parameters
    ----------
    inputs
        As :func:`pad_examples` returns them. A ``special_tokens_mask`` among them is believed; without one the ids that
        the tokenizer calls special count.
    tokenizer
        May be ``None``.

    Examples
    --------
    >>> real, _ = position_masks({"input_ids": np.array([[7, 0]]), "attention_mask": np.array([[1, 0]])}, None)
    >>> real["model"].tolist()
    [[True, False]]
    """
    real, special = {}, {}
    for tokens, stack in _stacks(inputs).items():
        found = inputs.get(SPECIAL_TOKENS_MASK) if tokens == "input_ids" else None
        if found is None:
            found = np.isin(inputs[tokens], sorted(_special_ids(tokenizer)))
        real[stack] = inputs[_TOKEN_INPUTS[tokens]].astype(bool)
        special[stack] = found.astype(bool) & real[stack]
    return real, special


def text_parts(text: Any, index: int) -> tuple[str, ...]:
    """The one or two texts of an example; anything else is refused."""
    parts = (text,) if isinstance(text, str) else tuple(text) if isinstance(text, list | tuple) else ()
    if len(parts) not in (1, 2) or not all(isinstance(part, str) for part in parts):
        raise ProbeSetError(f"example {index}: must be one text or a pair of texts; got {text!r:.60}")
    return parts


def require_tokens(has_token: Any, stack: str) -> None:
    """Refuse examples without a real token, saying how many there are and where the first is."""
    empty = np.flatnonzero(~np.asarray(has_token))
    if empty.size:
        raise ProbeSetError(
            f"every example must have at least one real token in stack `{stack}`; got none in {empty.size} "
            f"example(s), first at index {empty[0]}. Remove texts that tokenise to nothing"
        )


def as_array(value: Any, what: str) -> np.ndarray:
    """An array of a value, or a :class:`ProbeSetError` that says which value is none."""
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        raise ProbeSetError(f"{what} must be an array of numbers; got {error}") from error


def _example(
    feature: Mapping[str, Any], index: int, *, max_length: int, special_ids: frozenset[int]
) -> dict[str, np.ndarray]:
    """One example as arrays with attention masks, without padding, cut to `max_length` tokens."""
    arrays = {name: as_array(value, f"example {index}: input `{name}`") for name, value in feature.items()}
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise ProbeSetError(f"example {index}: input `{name}` must be an array of numbers; got {array.dtype}")
    for tokens, mask in _TOKEN_INPUTS.items():
        if tokens not in arrays:
            continue
        ids = arrays[tokens]
        if ids.ndim != 1:
            raise ProbeSetError(
                f"example {index}: `{tokens}` must have one axis, without a batch; got shape {ids.shape}"
            )
        arrays.setdefault(mask, np.ones(ids.shape, dtype=np.int64))
        own = [name for name in arrays if _tokens_of(name) == tokens]
        for name in own:
            if name in _POSITION_INPUTS and arrays[name].shape != ids.shape:
                raise ProbeSetError(
                    f"example {index}: `{name}` must have one value per token of `{tokens}`, {len(ids)}; "
                    f"got shape {arrays[name].shape}"
                )
        keep = _kept_positions(ids, arrays[mask], max_length, special_ids)
        arrays |= {name: arrays[name][keep] for name in own if arrays[name].shape[:1] == ids.shape}
    return arrays


def _tokens_of(name: str) -> str:
    """The token input whose positions another input follows."""
    return "decoder_input_ids" if name.startswith("decoder_") else "input_ids"


def _stacks(inputs: Mapping[str, Any]) -> dict[str, str]:
    """Stack of each token input that is there."""
    first = "encoder" if "decoder_input_ids" in inputs else "model"
    return {tokens: first if tokens == "input_ids" else "decoder" for tokens in _TOKEN_INPUTS if tokens in inputs}


def _kept_positions(ids: np.ndarray, mask: np.ndarray, max_length: int, special_ids: frozenset[int]) -> np.ndarray:
    real = np.flatnonzero(mask)
    keep = np.arange(real[0], real[-1] + 1) if real.size else real
    if len(keep) <= max_length:
        return keep
    ends_special = int(ids[keep[-1]]) in special_ids
    return np.append(keep[: max_length - 1], keep[-1]) if ends_special else keep[:max_length]


def _special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of [CLS], [SEP] and the like; an unknown word is a word, unless its id also marks an end (GPT-2)."""
    marks = {getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "cls", "sep", "pad", "mask")}
    unknown = {getattr(tokenizer, "unk_token_id", None)} - marks
    return frozenset(getattr(tokenizer, "all_special_ids", ())) - unknown


def _to_length(values: list[np.ndarray], fill: int, side: str) -> list[np.ndarray]:
    longest = max(len(value) for value in values)
    pads = [(longest - len(value), 0) if side == "left" else (0, longest - len(value)) for value in values]
    return [
        np.pad(value, [pad] + [(0, 0)] * (value.ndim - 1), constant_values=fill)
        for value, pad in zip(values, pads, strict=True)
    ]
