"""The state of training methods beside a checkpoint: one safetensors file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dynprobe.errors import DynprobeError, UsageError
from dynprobe.finetune.method import Method
from dynprobe.finetune.streams import Streams

STATE_FILE = "dynprobe_finetune.safetensors"
_STREAMS = "streams"


def save_state(folder: Path, methods: Sequence[Method], streams: Streams | None) -> None:
    """Write what a later training needs to go on exactly, beside a checkpoint."""
    tensors = {
        f"{each.name}/{key}": value.detach().cpu().clone().contiguous()
        for each in methods
        for key, value in each.state_dict().items()
    }
    for key, value in (streams.state_dict() if streams else {}).items():
        tensors[f"{_STREAMS}/{key}"] = value
    metadata = {"format": "1", "methods": json.dumps(_described(methods)), "streams": json.dumps(streams is not None)}
    partial = folder / f"{STATE_FILE}.tmp"
    save_file(tensors, partial, metadata=metadata)
    partial.replace(folder / STATE_FILE)


def load_state(folder: Path, methods: Sequence[Method], streams: Streams | None) -> None:
    """Go on from what :func:`save_state` has written.

    Raises
    ------
    DynprobeError
        When the file is missing or damaged.
    UsageError
        When it was written by other methods or other options.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise DynprobeError(
            f"a checkpoint must hold {STATE_FILE} to resume a training with {_names(methods)}; got none in {folder}. Resume "
            "from a checkpoint that this method has saved, or start anew"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DynprobeError(f"{path} must be a safetensors file; it cannot be read: {error}") from error
    saved = json.loads(metadata.get("methods", "{}"))
    now = json.loads(json.dumps(_described(methods)))
    if saved != now or json.loads(metadata.get("streams", "false")) != (streams is not None):
        raise UsageError(
            f"a training must be resumed with the methods, options and streams that it began with, {saved} in {path}; got {now}"
        )
    for each in methods:
        each.load_state_dict(_part(tensors, each.name))
    if streams is not None:
        streams.load_state_dict(_part(tensors, _STREAMS))


def _described(methods: Sequence[Method]) -> dict[str, object]:
    return {each.name: each.settings() for each in methods}


def _names(methods: Sequence[Method]) -> str:
    return " and ".join(repr(each.name) for each in methods)


def _part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
