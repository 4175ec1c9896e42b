"""The training methods by name: what there is, their options, and which go together."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dynprobe.finetune.freelb import FreeLB
from dynprobe.finetune.method import Method, Option
from dynprobe.finetune.model_methods import BatchNormMethod, IsoBNMethod, Mixout, Reinit
from dynprobe.finetune.optimizer_methods import BertAdamMethod, LayerRatesMethod, Pull
from dynprobe.finetune.r3f import R3F
from dynprobe.finetune.r4f import R4F
from dynprobe.finetune.rdrop import RDrop
from dynprobe.finetune.smart import SMART

_KINDS: tuple[type[Method], ...] = (
    *(Method, R3F, R4F, SMART, FreeLB, RDrop),
    *(IsoBNMethod, BatchNormMethod, Mixout, Reinit),
    *(BertAdamMethod, LayerRatesMethod, Pull),
)
METHODS: dict[str, type[Method]] = {kind.name: kind for kind in _KINDS}

_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def method(name: str, **options: Any) -> Method:
    """Make a training method.

    Parameters
    ----------
    name
        One of ``METHODS``.
    options
        Its options; see ``METHODS[name].options()``.

    Raises
    ------
    ValueError
        For a name or option that does not exist, or an option out of range.
    TypeError
        For an option of the wrong type.

    Examples
    --------
    >>> method("r3f", eps=1e-4).settings()["eps"]
    0.0001
    """
    kind = _kind(name)
    _require_known(name, options, kind.options())
    return kind(**options)


def parse_options(name: str, pairs: Mapping[str, str]) -> dict[str, Any]:
    """The options of a method from text, as a command line gives them.

    Raises
    ------
    ValueError
        For an option that does not exist, or text that is no value of it.

    Examples
    --------
    >>> parse_options("r3f", {"eps": "1e-4", "noise": "normal"})
    {'eps': 0.0001, 'noise': 'normal'}
    """
    known = _kind(name).options()
    _require_known(name, pairs, known)
    return {key: _parsed(known[key], text) for key, text in pairs.items()}


def require_compatible(methods: Sequence[Method]) -> None:
    """Check that methods can be used together: no name twice, and at most one with passes of its own.

    Raises
    ------
    ValueError
        When they cannot.

    Examples
    --------
    >>> require_compatible([method("r3f"), method("freelb")])
    Traceback (most recent call last):
    ...
    ValueError: methods with passes of their own must be used one at a time; got 'r3f' and 'freelb'
    """
    names = [each.name for each in methods]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"a method must be used once; got {twice[0]!r} twice")
    several = [each.name for each in methods if each.has_passes]
    if len(several) > 1:
        raise ValueError(
            f"methods with passes of their own must be used one at a time; got {several[0]!r} and {several[1]!r}"
        )


def _kind(name: str) -> type[Method]:
    if name not in METHODS:
        raise ValueError(f"`method` must be one of {list(METHODS)}; got {name!r}{_hint(name, METHODS)}")
    return METHODS[name]


def _require_known(name: str, given: Iterable[str], known: Mapping[str, Option]) -> None:
    for key in given:
        if key not in known:
            raise ValueError(f"options of method {name!r} must be among {list(known)}; got {key!r}{_hint(key, known)}")


def _hint(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f". Did you mean {close[0]!r}?" if close else ""


def _parsed(entry: Option, text: str) -> Any:
    if entry.optional and text.lower() == "none":
        return None
    try:
        return _WORDS[text.lower()] if entry.kind is bool else entry.kind(text)
    except (KeyError, ValueError):
        raise ValueError(f"`{entry.name}` must be {entry.kind.__name__}; got {text!r}") from None
