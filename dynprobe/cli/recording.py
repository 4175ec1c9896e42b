"""The options that say what a snapshot holds; the same words wherever something is captured."""

from collections.abc import Callable
from typing import Any

import click

_OPTIONS = (
    click.option("--budget", default=None, help="Bytes for all snapshots of the run.  [2GB]"),
    click.option(
        "--hidden",
        default=None,
        help="Tokens whose hidden states are kept: sample, all, pooled (vectors of examples only) or a number.  [sample]",
    ),
    click.option(
        "--attention", default=None, help="Examples whose attention is kept: sample, all, none or a number.  [sample]"
    ),
    click.option(
        "--attention-rows", default=None, help="all tokens as queries, or cls: [CLS] or what stands for it.  [all]"
    ),
    click.option("--attention-dtype", default=None, help="How attention is stored: float16 or float32.  [float16]"),
    click.option("--layers", default=None, help="all, or numbers such as 0,6,-1 (0 embeddings, -1 the last).  [all]"),
    click.option(
        "--cross-attention/--no-cross-attention", default=None, help="Attention of a decoder to its encoder.  [yes]"
    ),
    click.option(
        "--value-norms/--no-value-norms",
        default=None,
        help="Also the norm of what each head carries on from each token.  [no]",
    ),
)


def recording_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command; it gets them by name, `None` where nothing was said."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
