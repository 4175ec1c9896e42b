"""Options that several measures share, and the check that there are samples enough for canonical correlations."""

from typing import Literal, TypeAlias, get_args

from torch import Tensor

Convention: TypeAlias = Literal["definition", "google", "anatome"]
SmallSample: TypeAlias = Literal["refuse", "allow"]
Base: TypeAlias = Literal["x", "y", "mean"]
CONVENTIONS, SMALL_SAMPLE, BASES = get_args(Convention), get_args(SmallSample), get_args(Base)


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Complain about a word that is none of those allowed."""
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}; got {value!r}")


def check_level(level: float) -> None:
    """Complain about a level of confidence that is no probability."""
    if not 0.0 < level < 1.0:
        raise ValueError(f"`level` must be a probability in (0, 1); got {level}")


def check_samples(n_directions: dict[str, Tensor], n_samples: int, small_sample: str, *, remedy: str) -> None:
    """Refuse sides whose directions fill the whole space of centred samples, unless that is allowed.

    `n_directions` gives for each argument its number of directions, (...). Centred samples span n_samples - 1 dimensions: one
    side that fills them holds every direction of the other, so that each canonical correlation is 1.
    """
    check_choice("small_sample", small_sample, SMALL_SAMPLE)
    for name, kept in n_directions.items():
        if small_sample == "refuse" and bool((kept >= n_samples - 1).any()):
            raise ValueError(
                f"`{name}` must have more samples than directions, at least two more; got {n_samples} samples and "
                f"{int(kept.max())} directions, so that every canonical correlation is 1 whatever the other side holds. "
                f'Take more rows, {remedy}, or small_sample="allow" to have the number all the same'
            )
