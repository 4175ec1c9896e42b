"""What was asked for on the command line to be measured: the probe set of another run, or texts and tasks.

Texts are read by the model's own tokenizer.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynprobe.capture.architecture import describe_model, transformer_inside
from dynprobe.capture.default_probe import default_n_examples
from dynprobe.capture.guard import random_state_kept, unwrapped
from dynprobe.capture.inject import InjectedOptions
from dynprobe.capture.models import load_tokenizer
from dynprobe.capture.probe_tasks import require_known_tokens
from dynprobe.errors import CaptureError
from dynprobe.probe_set import DEFAULT_MAX_LENGTH, ProbeSet
from dynprobe.probe_task import LabelledTexts, ProbeTask
from dynprobe.storage.layout import probe_path
from dynprobe.storage.probe_file import read_probe_set


def asked_probe_set(options: InjectedOptions, model: Any, *, tokenizer: Any = None) -> ProbeSet | None:
    """The probe set that the command line names.

    Parameters
    ----------
    options
        What was asked for.
    model
        The model that will be measured on it.
    tokenizer
        The program's own tokenizer, where it is known; one that is named on the command line wins.

    Returns
    -------
    ProbeSet or None
        ``None`` when nothing was asked for.

    Raises
    ------
    CaptureError
        When texts are given and no tokenizer, or the inputs hold tokens that the model does not know.
    """
    if options.probe_run is None and options.probe_texts is None:
        return None
    core = transformer_inside(unwrapped(model))
    if options.probe_run is not None:
        probe = read_probe_set(probe_path(Path(options.probe_run)))
    else:
        with random_state_kept():
            probe = _from_texts(options, core, tokenizer)
    require_known_tokens(probe, core)
    return probe


def asked_probe_tasks(options: InjectedOptions, model: Any, *, tokenizer: Any = None) -> dict[str, ProbeTask]:
    """The probe tasks that the command line names, as the model's own tokenizer reads them.

    Parameters
    ----------
    options, model, tokenizer
        As for :func:`asked_probe_set`.

    Raises
    ------
    CaptureError
        As for :func:`asked_probe_set`.
    """
    if options.probe_tasks is None:
        return {}
    core = transformer_inside(unwrapped(model))
    if getattr(core.config, "is_encoder_decoder", False):
        raise CaptureError(
            "an encoder-decoder must have decoder inputs in its probe tasks; got texts (--probe-task). Leave them out, or give "
            "`probe_tasks` to a dynprobe.Recorder in the program"
        )
    tasks = json.loads(Path(options.probe_tasks).read_text(encoding="utf-8"))
    with random_state_kept():
        reader, longest = _tokenizer(options, core, tokenizer), _longest(core)
        return {
            name: ProbeTask.from_texts(
                _labelled(task["train"]),
                _labelled(task["test"]),
                reader,
                label_names=task["label_names"],
                max_length=longest,
            )
            for name, task in tasks.items()
        }


def _labelled(split: Mapping[str, Any]) -> LabelledTexts:
    return [tuple(parts) for parts in split["texts"]], split["labels"]


def _from_texts(options: InjectedOptions, core: Any, tokenizer: Any) -> ProbeSet:
    if getattr(core.config, "is_encoder_decoder", False):
        raise CaptureError(
            "an encoder-decoder must have decoder inputs in its probe set; got texts (--probe FILE). "
            "Give --probe RUN with the run of such a model"
        )
    texts = [tuple(parts) for parts in json.loads(Path(str(options.probe_texts)).read_text(encoding="utf-8"))]
    reader, n_examples = _tokenizer(options, core, tokenizer), default_n_examples(describe_model(core))
    return ProbeSet.from_texts(texts, reader, n_examples=n_examples, max_length=_longest(core))


def _tokenizer(options: InjectedOptions, core: Any, own: Any) -> Any:
    if options.tokenizer is not None:
        return load_tokenizer(options.tokenizer)
    if callable(own):
        return own
    source = str(getattr(core.config, "name_or_path", "") or "")
    if source and Path(source).is_dir():
        return load_tokenizer(source)
    raise CaptureError(
        "the texts of --probe and --probe-task must be tokenised as in the program; got no --tokenizer, and the model was "
        "not loaded from a folder with one. Give --tokenizer NAME_OR_FOLDER"
    )


def _longest(core: Any) -> int:
    """Number of tokens of an example: the usual one, or as many as the model has positions for."""
    config = core.config.get_text_config() if hasattr(core.config, "get_text_config") else core.config
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return DEFAULT_MAX_LENGTH
    padding = [
        module.padding_idx + 1  # RoBERTa counts positions from behind its padding id
        for name, module in core.named_modules()
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]
    return max(1, min(DEFAULT_MAX_LENGTH, positions - max(padding, default=0)))
