"""How much each head would carry on from each token: the norm of its value vector after the output projection.

An attention weight says how much of a value is taken, not how large that value is; much attention rests on tokens
with tiny values. Source: Kobayashi et al. 2020 (EMNLP), eq. 4 and 5.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dynprobe.capture.taps import Key, Source, Taps
from dynprobe.errors import CaptureError

# Names of the linear modules inside an attention module: those that make values alone, and those that make queries, keys and
# values at once, with the way they are laid side by side.
_VALUES = ("v_proj", "value", "v_lin", "v", "value_proj")
_JOINT = {"c_attn": "thirds", "Wqkv": "thirds", "query_key_value": "by head"}
_OUTPUTS = ("o_proj", "out_proj", "out_lin", "o", "c_proj", "Wo", "dense")
# The values, weighted with attention, must be what the output projection is given, to rounding.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}

Keep = Callable[[str, int, Tensor], None]


class _Block:
    """One attention module: where its values come from, and where what they add up to goes."""

    def __init__(self, model: nn.Module, source: Source) -> None:
        modules = dict(model.named_modules())
        here, above = modules[source.module], modules[source.module.rpartition(".")[0]]
        self.values = _child(here, (*_VALUES, *_JOINT))
        self.output = _child(here, _OUTPUTS) or _child(getattr(above, "output", None), ("dense",))
        name = next((name for name, child in here.named_children() if child is self.values), "")
        self.layout = _JOINT.get(name, "alone")

    def heads(self, made: Tensor, n_heads: int) -> Tensor:
        """(n_examples, n_heads, n_positions, d_head) values, of shared ones a copy for each query head."""
        if self.layout == "thirds":
            made = made.chunk(3, dim=-1)[2]
        elif self.layout == "by head":
            made = made.unflatten(-1, (n_heads, 3, -1))[..., 2, :].flatten(-2)
        d_head = _matrix(self.output).shape[1] // n_heads
        values = made.unflatten(-1, (-1, d_head)).transpose(1, 2)
        return values.repeat_interleave(n_heads // values.shape[1], dim=1)

    def norms(self, values: Tensor) -> Tensor:
        """(n_examples, n_positions, n_heads) L2 norm of each value vector after its part of the output projection."""
        weight = _matrix(self.output).detach().float()
        per_head = weight.unflatten(1, (values.shape[1], -1)).transpose(0, 1)  # (n_heads, d_model, d_head)
        gram = per_head.transpose(1, 2) @ per_head
        squares = torch.einsum("bhtd,hde,bhte->bth", values.float(), gram, values.float())
        return squares.clamp(min=0).sqrt()


@contextmanager
def value_norms(model: nn.Module, taps: Taps, keep: Keep) -> Iterator[Callable[[Key, int, Tensor], None]]:
    """During a pass, hand the value norms of each block's self attention to `keep`.

    Parameters
    ----------
    model
        The model.
    taps
        Where its attention is made.
    keep
        Called with stack, block and (n_examples, n_positions, n_heads) norms.

    Yields
    ------
    callable
        To be called with (stack, kind), block and attention of each block as it is made; it checks that the values
        found, weighted with this attention, are what the model goes on with.

    Raises
    ------
    CaptureError
        When the model's values are not where they are in the models that are known.
    """
    wanted = {key: source for source, key in taps.attention.items() if key[0][1] == "self"}
    if not wanted:
        raise _unknown(model)
    blocks = {key: _Block(model, source) for key, source in wanted.items()}
    if any(block.values is None or block.output is None for block in blocks.values()):
        raise _unknown(model)
    made: dict[int, Tensor] = {}
    given: dict[int, Tensor] = {}  # to the output projection, where that lies inside the attention module
    awaited: dict[int, Tensor] = {}  # by the output projection, where it follows

    def see_values(module: nn.Module, _args: Any, output: Tensor) -> None:
        made[id(module)] = output

    def see_output(module: nn.Module, args: tuple[Any, ...]) -> None:
        if id(module) in awaited:
            _require_same(awaited.pop(id(module)), args[0], model)
        else:
            given[id(module)] = args[0]

    def on_attention(key: Key, layer: int, attention: Tensor) -> None:
        if key[1] != "self":
            return
        block = blocks[key, layer]
        values = block.heads(made.pop(id(block.values)), attention.shape[1])
        mixed = (attention[..., -values.shape[2] :].to(values.dtype) @ values).transpose(1, 2).flatten(2)
        if id(block.output) in given:
            _require_same(mixed, given.pop(id(block.output)), model)
        else:
            awaited[id(block.output)] = mixed
        keep(key[0], layer, block.norms(values))

    with ExitStack() as stack:
        for block in {id(block.output): block for block in blocks.values()}.values():
            stack.callback(block.values.register_forward_hook(see_values).remove)
            stack.callback(block.output.register_forward_pre_hook(see_output).remove)
        yield on_attention


def _require_same(mixed: Tensor, expected: Tensor, model: nn.Module) -> None:
    """Values weighted with attention must be what the model goes on with: then they are the values."""
    same_shape = mixed.shape == expected.shape
    tolerance = _TOLERANCE.get(expected.dtype, 1e-4)
    if not same_shape or not float((mixed - expected).abs().max()) <= tolerance * float(expected.abs().max()):
        raise _unknown(model)


def _child(parent: nn.Module | None, names: tuple[str, ...]) -> Any:
    children = dict(parent.named_children()) if parent is not None else {}
    return next((children[name] for name in names if name in children), None)


def _matrix(linear: Any) -> Tensor:
    """(d_model, n_heads * d_head) weight of an output projection; some keep it transposed."""
    weight: Tensor = linear.weight
    return weight.T if type(linear).__name__ == "Conv1D" else weight


def _unknown(model: nn.Module) -> CaptureError:
    return CaptureError(
        f"the model must keep its values where known models do; got {type(model).__name__}. Capture it without value norms"
    )
