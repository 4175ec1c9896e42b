"""The probe set when nothing is said: held-out examples of the trainer's own evaluation data."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from dynprobe.capture.architecture import Architecture, describe_model, transformer_inside
from dynprobe.capture.guard import random_state_kept, unwrapped
from dynprobe.errors import ProbeSetError
from dynprobe.probe_set import DEFAULT_MAX_LENGTH, DEFAULT_N_EXAMPLES, ProbeSet

# A model of so many weights is measured on fewer examples: a pass costs more, and its snapshots have no room for more tokens.
LARGE_MODEL = 10**9
_N_EXAMPLES_OF_LARGE = 128
# Choosing by content means reading every candidate; beyond so many, evenly spaced ones stand for all.
MAX_CANDIDATES = 20_000
TRAINING_DATA_NOTE = (
    "The probe examples are training data, because the trainer has no evaluation data: scores and probe accuracies on them "
    "say how well they were learned, not how well the model generalises."
)
_LABEL_NAMES = ("labels", "label", "label_ids")
_IGNORED = -100  # label of a token that has none


def default_n_examples(architecture: Architecture) -> int:
    """Number of probe examples when nothing is said: 512, or 128 for a model of a billion weights or more."""
    return _N_EXAMPLES_OF_LARGE if architecture.n_parameters >= LARGE_MODEL else DEFAULT_N_EXAMPLES


def probe_set_from_trainer(
    trainer: Any, *, n_examples: int | None = None, max_length: int = DEFAULT_MAX_LENGTH
) -> ProbeSet:
    """Choose a probe set from a transformers Trainer's evaluation data, or from its training data where it has none.

    Parameters
    ----------
    trainer
        A transformers ``Trainer``. Its random state, data sets and loaders are left alone.
    n_examples, max_length
        At most so many examples (by default as many as :func:`default_n_examples` says), truncated to so many tokens.

    Returns
    -------
    ProbeSet
        Its `origin` says where the examples come from.

    Raises
    ------
    ProbeSetError
        When there is no data, or no example holds what the model's forward takes.
    """
    model = unwrapped(trainer.model)
    architecture = describe_model(model)
    dataset, origin = _data_of(trainer)
    with random_state_kept():
        rows = _candidates(dataset)
        examples = [_example(row, architecture, trainer) for row in rows]
    features = [feature for feature, _ in examples]
    labels = [label for _, label in examples]
    if None in labels:
        labels = []
    if architecture.stacks[-1].name == "decoder":
        features = [
            _with_decoder_inputs(feature, row, model, labelled_whole=label is not None)
            for feature, row, (_, label) in zip(features, rows, examples, strict=True)
        ]
    probe = ProbeSet.from_features(
        features,
        tokenizer=getattr(trainer, "processing_class", None),
        texts=_texts(rows),
        labels=np.asarray(labels) if labels else None,
        label_names=_label_names(model, labels),
        n_examples=n_examples or default_n_examples(architecture),
        max_length=max_length,
    )
    return replace(probe, origin=origin)


def _data_of(trainer: Any) -> tuple[Any, str]:
    evaluation = trainer.eval_dataset
    if isinstance(evaluation, Mapping) and not hasattr(evaluation, "column_names"):
        evaluation = next(iter(evaluation.values()), None)
    if evaluation is not None:
        return evaluation, "evaluation data of the trainer"
    if trainer.train_dataset is not None:
        return trainer.train_dataset, "training data of the trainer"
    raise ProbeSetError(
        "the probe set must come from somewhere; the trainer has neither evaluation nor training data. "
        "Give a probe set (`probe_set=...`, --probe RUN)"
    )


def _candidates(dataset: Any) -> list[Mapping[str, Any]]:
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        step = max(1, -(-len(dataset) // MAX_CANDIDATES))
        return [dataset[index] for index in range(0, len(dataset), step)]
    return list(islice(iter(dataset), MAX_CANDIDATES // 10))


def _example(
    row: Mapping[str, Any], architecture: Architecture, trainer: Any
) -> tuple[dict[str, np.ndarray], int | float | None]:
    """Model inputs and label of one example: as the data set holds them, or as the trainer's collator makes them."""
    found = _inputs(row, architecture)
    if found:
        return found, _label(row)
    collated = trainer.data_collator([row])
    return {name: value[0] for name, value in _inputs(collated, architecture).items()}, _label(collated)


def _inputs(row: Mapping[str, Any], architecture: Architecture) -> dict[str, np.ndarray]:
    if not isinstance(row, Mapping):
        return {}
    names = architecture.forward_names - set(_LABEL_NAMES)
    arrays = {name: np.asarray(value) for name, value in dict(row).items() if name in names and value is not None}
    return {name: array for name, array in arrays.items() if array.dtype.kind in "biuf"}


def _label(row: Mapping[str, Any]) -> int | float | None:
    """The class or target of a whole example; `None` for labels per token and for none."""
    value = next((row[name] for name in _LABEL_NAMES if name in row and row[name] is not None), None)
    if value is None or isinstance(value, str):
        return None
    array = np.asarray(value)
    return array.reshape(()).item() if array.size == 1 else None


def _texts(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]] | None:
    if not all(isinstance(row, Mapping) for row in rows):
        return None
    texts = [tuple(value for value in dict(row).values() if isinstance(value, str)) for row in rows]
    return texts if all(texts) else None


def _label_names(model: Any, labels: Sequence[Any]) -> tuple[str, ...] | None:
    names: Mapping[int, str] = getattr(transformer_inside(model).config, "id2label", None) or {}
    whole = labels and all(isinstance(label, int) for label in labels)
    if whole and set(range(max(labels) + 1)) <= set(names):
        return tuple(str(names[index]) for index in sorted(names))
    return None


def _with_decoder_inputs(
    feature: dict[str, np.ndarray], row: Mapping[str, Any], model: Any, *, labelled_whole: bool
) -> dict[str, np.ndarray]:
    """What the decoder reads: the target text moved by one; of a classifier the input itself, as such models do."""
    if "decoder_input_ids" in feature:
        return feature
    core = transformer_inside(model)
    targets = None if not isinstance(row, Mapping) else row.get("labels")
    if targets is not None and not labelled_whole and hasattr(core, "prepare_decoder_input_ids_from_labels"):
        kept = np.asarray(targets)
        kept = kept[: np.flatnonzero(kept != _IGNORED)[-1] + 1] if (kept != _IGNORED).any() else kept[:1]
        shifted = core.prepare_decoder_input_ids_from_labels(labels=torch.as_tensor(kept)[None])
        return {**feature, "decoder_input_ids": np.asarray(shifted[0])}
    start = getattr(core.config, "decoder_start_token_id", None)
    if labelled_whole and start is not None and "input_ids" in feature:
        mask = {"decoder_attention_mask": feature["attention_mask"]} if "attention_mask" in feature else {}
        return {**feature, **mask, "decoder_input_ids": np.append(start, feature["input_ids"][:-1])}
    raise ProbeSetError(
        "an encoder-decoder needs `decoder_input_ids` or `labels` in each example; "
        f"got {sorted(feature)}. Give a probe set with decoder_input_ids"
    )
