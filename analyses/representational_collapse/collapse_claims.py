"""What the paper claims of representational collapse, and what it leaves open of R3F, as statements about one model."""

from collections.abc import Iterator, Mapping, Sequence

from collapse_chain import Chain, after_first, by_seed, chains_of, retention, source_change, source_probes
from collapse_noise import NoiseRow, noise_rows

from dynprobe.experiments.over_seeds import OverSeeds, beside, equivalence_p, larger, same, smaller
from dynprobe.experiments.results import Results
from dynprobe.experiments.statements import Statement

MARGIN = 0.02
STANDARD = "standard"
RELEASED_NOISE = 1e-5
# The methods that the paper proposes.
CLAIMED = ("r3f", "r4f")
# Part of the divergence that noise would have to make, so that R3F is more than dropout twice.
SHARE_MARGIN = 0.05


def statements(results: Results) -> list[Statement]:
    """What is claimed, as far as the arms of one model can tell; to be judged together."""
    chains, cycles = chains_of(results, cycles=1), chains_of(results, cycles=2)
    return [*_collapse(chains[STANDARD]), *_methods(chains), *_retained(cycles), *_noise(noise_rows(results))]


def _collapse(standard: Sequence[Chain]) -> Iterator[Statement]:
    """Whether standard training destroys anything that a probe can see."""
    before, after = (by_seed(standard, lambda chain, at=at: after_first(chain, at_start=at)) for at in (True, False))
    text = "Standard training on one task lowers what can be probed of the others, from the pretrained encoder"
    yield smaller(text, after, before, margin=MARGIN)
    first, last = (by_seed(standard, lambda chain, at=at: float(source_probes(chain)[at])) for at in (0, -1))
    text = "Standard training along the chain lowers what can be probed of its first task"
    yield smaller(text, last, first, margin=MARGIN)


def _methods(chains: Mapping[str, Sequence[Chain]]) -> Iterator[Statement]:
    for arm in (arm for arm in CLAIMED if arm in chains):
        for text, measure in (
            (f"{arm.upper()} leaves more of the other tasks to be probed than standard training does", after_first),
            (f"{arm.upper()} keeps more of the first task along the chain than standard training does", source_change),
        ):
            yield larger(text, *(by_seed(chains[kind], measure) for kind in (arm, STANDARD)), margin=MARGIN)


def _retained(cycles: Mapping[str, Sequence[Chain]]) -> Iterator[Statement]:
    def last(chain: Chain) -> float:
        return float(retention(chain)[-1].mean())

    for arm in (arm for arm in CLAIMED if {f"{arm}-cycles", f"{STANDARD}-cycles"} <= cycles.keys()):
        text = f"{arm.upper()} retains more of all tasks in the last cycle than standard training does"
        both = (by_seed(cycles[f"{kind}-cycles"], last) for kind in (arm, STANDARD))
        yield larger(text, *both, margin=MARGIN)


def _noise(rows: Sequence[NoiseRow]) -> Iterator[Statement]:
    """Whether the noise of the released scale does anything that the dropout of both passes does not do alone."""
    for row in rows:
        if row.with_dropout and row.noise == RELEASED_NOISE and row.share.values:
            yield _is_dropout(row.share, row.all_dropout)
            if row.base is not None:
                yield same(
                    "Without the noise of the released scale R3F scores the same", row.base, row.score, margin=MARGIN
                )


def _is_dropout(share: OverSeeds, everything: OverSeeds) -> Statement:
    text = "At the released noise scale R3F is two dropout passes"
    gap = beside(share, everything).mean
    if gap is None:
        return Statement(text=text, shown="too few seeds")
    low, high = 100 * (1 + gap.low), 100 * (1 + gap.high)
    shown = f"without the noise it has {100 * (1 + gap.difference):.2f} % [{low:.2f}, {high:.2f}] of its divergence"
    apart = gap.low > SHARE_MARGIN or gap.high < -SHARE_MARGIN
    p = equivalence_p(share, everything, margin=SHARE_MARGIN)
    return Statement(text=text, shown=f"{shown}, {gap.n_x} seeds", brief=shown, p=p, as_claimed=True, refuted=apart)
