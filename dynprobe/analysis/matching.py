"""Whether two runs can be compared, and what of them can be matched one to one."""

from dynprobe.analysis.moments import Moment, Pair
from dynprobe.errors import IncompatibleRunsError
from dynprobe.run import Run


def require_comparable(run_a: Run, run_b: Run) -> None:
    """Check that two runs have snapshots and were measured on the same probe set.

    Raises
    ------
    IncompatibleRunsError
        When a run has no snapshot, when the probe sets differ, naming both fingerprints, or when the runs have no stack
        and no outputs in common.
    """
    for run in (run_a, run_b):
        if not run.steps:
            raise IncompatibleRunsError(
                f"{run.path}: must hold at least one snapshot; got none. Capture the run again, or give another one"
            )
    ours, theirs = run_a.probe_set.fingerprint, run_b.probe_set.fingerprint
    if ours != theirs:
        raise IncompatibleRunsError(
            "two runs must be measured on the same probe set; got fingerprint "
            f"{ours[:16]} ({run_a.probe_set.n_examples} examples) in {run_a.path} and {theirs[:16]} "
            f"({run_b.probe_set.n_examples} examples) in {run_b.path}. "
            f"Capture the second run again with --probe {run_a.path}"
        )
    shared = set(run_a.stacks) & set(run_b.stacks)
    speaks = all(run[run.steps[-1]].outputs() is not None for run in (run_a, run_b))
    if not shared and not speaks:
        raise IncompatibleRunsError(
            f"two runs must have something in common to compare; got stacks {list(run_a.stacks)} in {run_a.path} and "
            f"{list(run_b.stacks)} in {run_b.path}, and no outputs of both. Capture hidden states or attention of both"
        )


def shared_stacks(pair: Pair) -> tuple[str, ...]:
    """Stacks that both snapshots hold, in order of the first."""
    return tuple(stack for stack in pair.a.snapshot.stacks if stack in pair.b.snapshot.stacks)


def n_blocks(moment: Moment, stack: str) -> int:
    """Number of transformer blocks of a stack, as far as the stored layers tell; 0 when nothing is stored."""
    snapshot = moment.snapshot
    pooled = [layer for kind in snapshot.pooled_kinds(stack) for layer in snapshot.pooled_layers(kind, stack)]
    return max([*snapshot.layers(stack), *snapshot.attention_layers(stack), *pooled], default=0)


def layer_mismatch(pair: Pair, stack: str) -> str | None:
    """Why layers cannot be matched one to one, or ``None`` when they can."""
    depths = n_blocks(pair.a, stack), n_blocks(pair.b, stack)
    if depths[0] == depths[1]:
        return None
    return (
        f"{pair.a.name} has {depths[0]} layers and {pair.b.name} {depths[1]} (stack {stack}), so layers cannot be "
        "matched one to one"
    )


def head_mismatch(pair: Pair, stack: str, kind: str) -> str | None:
    """Why heads cannot be matched one to one, or ``None`` when they can."""
    heads = pair.a.snapshot.n_heads(stack, kind), pair.b.snapshot.n_heads(stack, kind)
    if 0 in heads or heads[0] == heads[1]:
        return None
    return (
        f"{pair.a.name} has {heads[0]} {kind}-attention heads and {pair.b.name} {heads[1]} (stack {stack}), so heads "
        "cannot be matched one to one"
    )
