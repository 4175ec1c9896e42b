"""Whether SVCCA of a layer is computed: decided once, from the eigenvalues of its reference, before anything else is done."""

from dataclasses import dataclass

from dynprobe.analysis.moments import Moment
from dynprobe.analysis.representations import Representations
from dynprobe.metrics.from_sums import count_directions

# Tokens for each kept direction; below it canonical correlations of unrelated data are far from zero.
ROWS_PER_DIRECTION = 10
# SVCCA of wider layers, such as those of large language models, takes minutes; it is computed when it is asked for by name.
WIDEST_SVCCA = 1024


@dataclass(frozen=True)
class LeftOut:
    """Why SVCCA of a layer is not computed.

    Attributes
    ----------
    status, reason
        As in a row of a result.
    n_kept
        Number of directions that it would keep; 0 where that is not known.
    """

    status: str
    reason: str
    n_kept: int = 0


def too_few_tokens(n_rows: int, n_kept: int) -> str:
    """Why SVCCA of so many tokens and directions is not to be trusted; empty where it is.

    Examples
    --------
    >>> too_few_tokens(4096, 400)
    ''
    >>> too_few_tokens(4096, 1800)[:65]
    '4096 tokens for 1800 directions; at least 18000 tokens are needed'
    """
    needed = ROWS_PER_DIRECTION * n_kept
    if n_rows >= needed:
        return ""
    return (
        f"{n_rows} tokens for {n_kept} directions; at least {needed} tokens are needed ({ROWS_PER_DIRECTION} per direction, "
        "below which unrelated data look alike). Capture more tokens, or read CKA, which needs fewer"
    )


def left_out(
    states: Representations, layer: int, *, variance: float, widest: int | None = None
) -> dict[Moment, LeftOut]:
    """References of a layer of which SVCCA is not computed, and why.

    Parameters
    ----------
    states
        Hidden states of all snapshots.
    layer
        Which layer.
    variance
        Share of the variance that decides how many directions a reference keeps.
    widest
        Number of features above which it is left out; ``None`` for no such number.
    """
    found: dict[Moment, LeftOut] = {}
    for reference in states.references(layer):
        width = reference.snapshot.d_model(layer, states.stack)
        n_kept = 0 if states.n_rows >= ROWS_PER_DIRECTION * width else _asked(states, reference, layer, variance)
        if few := too_few_tokens(states.n_rows, n_kept):
            found[reference] = LeftOut("insufficient-sample", few, n_kept)
        elif widest is not None and width > widest:
            reason = f"SVCCA of {width} features takes minutes; ask for it by name, as with --metric svcca_similarity"
            found[reference] = LeftOut("not-computed", reason, n_kept)
    return found


def _asked(states: Representations, reference: Moment, layer: int, variance: float) -> int:
    """How many directions a reference asks for; 0 for NaN or no variance, which is said where the layer is read."""
    try:
        return count_directions(states.prepared(reference, layer), variance=variance)
    except ValueError:
        return 0
