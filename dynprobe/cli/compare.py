"""`dynprobe compare`: two runs, or two saved models, and what differs."""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dynprobe.cli.console import complain, progress_bar, say
from dynprobe.cli.outputs import check_outputs, show_result

if TYPE_CHECKING:
    from dynprobe.result import Result


def _list_metrics(context: click.Context, _option: click.Parameter, asked: bool) -> None:  # noqa: FBT001 - click's
    """Print what can be measured, and end."""
    if not asked:
        return
    from dynprobe.analysis.catalog import METRICS

    for name, info in METRICS.items():
        say(f"{name}: {info.meaning}")
    context.exit()


@click.command()
@click.argument("a", metavar="RUN_A")
@click.argument("b", metavar="RUN_B")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the report, one self-contained HTML file.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all numbers as versioned JSON.")
@click.option(
    "--texts", type=click.Path(path_type=Path), help="RUN_A and RUN_B are saved models: measure them on these texts."
)
@click.option(
    "--keep", type=click.Path(path_type=Path), help="With --texts: keep the two run directories in this folder."
)
@click.option("--specials/--no-specials", default=False, help="Count special tokens such as [CLS] and [SEP].  [no]")
@click.option(
    "--standardize",
    is_flag=True,
    help="Divide every feature of the hidden states by its standard deviation, which takes the weight of rogue dimensions.",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    help="Only this metric, such as svcca_similarity (see --metrics); may be given several times.  "
    "[all, but SVCCA only up to 1024 features]",
)
@click.option(
    "--metrics",
    "list_metrics",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_metrics,
    help="Print the metrics with what they mean, and end.",
)
@click.option(
    "--fail-on",
    multiple=True,
    metavar="METRIC>VALUE",
    help="Exit with 1 when the runs differ by more at the end; also METRIC<VALUE.",
)
@click.option("--verify", is_flag=True, help="Check every array against its checksum when it is read.")
@click.option("--force", is_flag=True, help="Replace output files that exist.")
def compare(
    a: str,
    b: str,
    output: Path | None,
    json_file: Path | None,
    texts: Path | None,
    keep: Path | None,
    fail_on: tuple[str, ...],
    force: bool,  # noqa: FBT001
    **how: Any,
) -> None:
    """Compare two runs on the same probe set: which layers changed, and what the models now say.

    \b
    Without any training run, compare a base model with a tuned model or adapter:
      dynprobe compare BASE_MODEL TUNED_MODEL --texts texts.txt -o report.html

    \b
    FILE of --texts: one text per line, or CSV / JSONL / Parquet with text columns.
    A model is a folder, package:NAME for weights in an installed package, or a name on the model hub.
    """
    from dynprobe.analysis.catalog import METRICS
    from dynprobe.cli.naming import require_known
    from dynprobe.cli.thresholds import Threshold, exceeded
    from dynprobe.errors import UsageError
    from dynprobe.report import terminal_tables
    from dynprobe.storage.folder import is_run

    thresholds = [Threshold.parse(text) for text in fail_on]
    require_known([threshold.metric for threshold in thresholds], tuple(METRICS), "--fail-on", what="name one of")
    require_known(how["metrics"], tuple(METRICS), "--metric")
    if keep is not None and (texts is None or is_run(keep)):
        raise UsageError(f"--keep must be a folder for the runs made by --texts, and no run itself; got {keep}")
    check_outputs(output, json_file, force=force)
    how["metrics"] = how["metrics"] or None
    result = _compared(a, b, texts=texts, keep=keep, verify=how.pop("verify"), how=how)
    show_result(result, terminal_tables(result), output=output, json_file=json_file, force=force)
    broken = exceeded(result, thresholds)
    for sentence in broken:
        complain(sentence)
    sys.exit(1 if broken else 0)


def _compared(
    a: str, b: str, *, texts: Path | None, keep: Path | None, verify: bool, how: Mapping[str, Any]
) -> "Result":
    from dynprobe.analysis import compare as compare_runs
    from dynprobe.errors import UsageError
    from dynprobe.run import open_run
    from dynprobe.storage.folder import is_run

    with tempfile.TemporaryDirectory(prefix="dynprobe-") as scratch, progress_bar() as advance:
        paths = (Path(a), Path(b))
        if texts is not None:
            from dynprobe.capture.models import capture_pair
            from dynprobe.tasks import read_texts

            advance(0, 3, "measuring both models")
            paths = capture_pair(a, b, read_texts(texts), keep or Path(scratch))
        elif not any(is_run(path) for path in paths) and any((path / "config.json").is_file() for path in paths):
            raise UsageError(
                f"{a} and {b} must be run directories; got saved models. Give --texts FILE to measure both on its texts"
            )
        runs = [open_run(path, verify=verify) for path in paths]
        return compare_runs(*runs, progress=advance, **how)
