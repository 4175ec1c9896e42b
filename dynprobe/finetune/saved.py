"""Take up what a saved model folder holds beside the weights of the plain model: statistics and anchors."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.modeling_utils import load_state_dict

from dynprobe.errors import DynprobeError
from dynprobe.finetune.anatomy import core_model
from dynprobe.finetune.mixout import MixoutConv1D, MixoutLinear
from dynprobe.finetune.running import RunningNorm

_WHOLE = ("model.safetensors", "pytorch_model.bin")


def restore_saved_state(model: nn.Module, folder: str | Path) -> tuple[str, ...]:
    """Load the statistics and anchors of the methods that the model has now from a folder that was saved with them.

    ``from_pretrained`` loads the weights; this loads the rest, after the methods were put into the model again. A Trainer that
    resumes from a checkpoint does it by itself.

    Parameters
    ----------
    model
        A transformers model with :class:`IsoBN` or :class:`BatchNormBaseline` inserted, or under Mixout.
    folder
        What ``save_pretrained`` or the Trainer wrote.

    Returns
    -------
    tuple of str
        Names of the tensors that were loaded.

    Raises
    ------
    DynprobeError
        When the folder holds no weights, or not those that the methods need.
    ValueError
        When the model has no such method.
    """
    core = core_model(model)
    own = _own_tensors(core)
    if not own:
        raise ValueError(
            "`model` must have a method with saved tensors (IsoBN, batch norm, Mixout); got none. Put it in first"
        )
    saved = _read(Path(folder), set(own))
    missing = sorted(set(own) - set(saved))
    if missing:
        raise DynprobeError(
            f"{folder}: must hold the tensors of the model's methods; got {len(saved)} of {len(own)}, without {missing[:3]}. "
            f"Was it saved by a training with the same methods?"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])
    return tuple(own)


def _own_tensors(core: nn.Module) -> dict[str, Tensor]:
    own: dict[str, Tensor] = {}
    for path, part in core.named_modules():
        if isinstance(part, RunningNorm):
            own |= {f"{path}.{name}": tensor for name, tensor in part.state_dict(keep_vars=True).items()}
        elif isinstance(part, MixoutLinear | MixoutConv1D):
            own[f"{path}.anchor"] = part.anchor
    return own


def _read(folder: Path, names: set[str]) -> dict[str, Tensor]:
    files = [folder / name for name in _WHOLE if (folder / name).is_file()][:1]
    if not files:
        for index in (folder / f"{name}.index.json" for name in _WHOLE):
            if index.is_file():
                places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
                files = sorted({folder / file for name, file in places.items() if name in names})
                break
        else:
            raise DynprobeError(f"{folder}: must be a saved model folder; got no {' or '.join(_WHOLE)} in it")
    return {name: tensor for file in files for name, tensor in load_state_dict(str(file)).items() if name in names}
