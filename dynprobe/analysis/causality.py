"""Whether a token attends only to itself and to what precedes it: as the run says, else as its stored attention shows."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dynprobe.analysis.moments import Moment


def is_causal(moment: Moment, stack: str) -> bool:
    """Whether the self-attention of a stack looks backwards only.

    Parameters
    ----------
    moment
        A snapshot; its description of the model says it, or else the manifest of its run.
    stack
        Which stack.

    Returns
    -------
    bool
        Where neither says it: whether no stored example with two tokens or more has any weight above the diagonal.
        ``False`` where nothing tells.

    Examples
    --------
    >>> is_causal(moments(open_run("runs/gpt2"))[0], "model")  # doctest: +SKIP
    True
    """
    for source in (moment.snapshot.meta, moment.run.manifest):
        said = _said(source.get("model"), stack)
        if said is not None:
            return said
    return _shown(moment, stack)


def informative(queries: np.ndarray, keys: np.ndarray, *, n_virtual: int) -> np.ndarray:
    """The queries that have a choice in a causal stack: two or more of the kept keys stand at or before their own position.

    The row of any other query is 1 whatever the model does, so it can neither move nor stay.

    Parameters
    ----------
    queries, keys
        Ascending indices of the kept queries and keys; the virtual keys come first.
    n_virtual
        Number of keys that precede the first token.

    Examples
    --------
    >>> informative(np.array([1, 2, 3]), np.array([1, 2, 3]), n_virtual=0)
    array([2, 3])
    >>> informative(np.array([0, 1]), np.array([0, 1, 2]), n_virtual=1)
    array([0, 1])
    """
    return queries[np.searchsorted(keys, queries + n_virtual, side="right") > 1]


def _said(model: Any, stack: str) -> bool | None:
    stacks = model.get("stacks") if isinstance(model, Mapping) else None
    for entry in stacks if isinstance(stacks, (list, tuple)) else ():
        if isinstance(entry, Mapping) and entry.get("name") == stack and isinstance(entry.get("causal"), bool):
            return bool(entry["causal"])
    return None


def _shown(moment: Moment, stack: str) -> bool:
    """Softmax gives every key that may be attended to some weight, so that a triangle of zeros is a mask."""
    layers = moment.snapshot.attention_layers(stack)
    telling = 0
    for block in moment.snapshot.attentions(layers[0], stack) if layers else ():
        n_query, n_key = block.shape[1:]
        if n_query > 1:
            if np.triu(block, k=n_key - n_query + 1).any():
                return False
            telling += 1
    return telling > 0
