"""`dynprobe verify`: check every byte of a run directory."""

import sys
from pathlib import Path

import click

from dynprobe.cli.console import complain, plain, progress_bar, say


@click.command()
@click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))
def verify(run_dir: Path) -> None:
    """Check every file of RUN against the checksums stored when it was written.

    Exit code 0 when all is intact, 3 when something is damaged, missing or exchanged.
    """
    from dynprobe.storage.folder import list_steps
    from dynprobe.storage.verify import verify_run

    checks = []
    with progress_bar() as advance:
        for check in verify_run(run_dir):
            checks.append(check)
            advance(len(checks), len(list_steps(run_dir)) + 4, plain(check.path.name))
    damaged = [check for check in checks if check.problems]
    for check in damaged:
        for problem in check.problems:
            complain(plain(problem if problem.startswith(str(check.path)) else f"{check.path}: {problem}"))
    for check in checks:
        for remark in check.remarks:
            say(plain(f"Note: {check.path} {remark}"))
    n_arrays = sum(check.n_arrays for check in checks)
    say(f"{len(checks) - len(damaged)} of {len(checks)} files intact, {n_arrays} arrays checked: {plain(str(run_dir))}")
    sys.exit(3 if damaged else 0)
