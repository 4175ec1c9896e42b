"""What becomes of a result: printed, and written as page and numbers where the user asked for them."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from dynprobe.cli.console import err, say, show_table

if TYPE_CHECKING:
    from dynprobe.report import TerminalTable
    from dynprobe.result import Result


def check_outputs(output: Path | None, json_file: Path | None, *, force: bool) -> None:
    """Refuse files that could not be written, before anything is computed.

    Raises
    ------
    UsageError
        When both are the same file, or one is there and is not to be replaced.
    """
    from dynprobe.errors import UsageError
    from dynprobe.report.writing import check_target

    if output is not None and json_file is not None and output.absolute() == json_file.absolute():
        raise UsageError(f"-o and --json must be two files; got {output} for both")
    for path in (output, json_file):
        if path is not None:
            check_target(path, force=force)


def show_result(
    result: "Result", tables: "Iterable[TerminalTable]", *, output: Path | None, json_file: Path | None, force: bool
) -> None:
    """Print findings, tables and notes; write the page to `output` and the numbers to `json_file`, if they are given."""
    from dynprobe.report import write_json, write_report

    for sentence in result.findings:
        say(f"• {sentence}")
    for table in tables:
        show_table(table.title, table.columns, table.rows)
    for note in result.notes:
        say(f"Note: {note}")
    if output is not None:
        write_report(result, output, force=force)
        err.print(f"Report: {output}", markup=False)
    if json_file is not None:
        write_json(result, json_file, force=force)
        err.print(f"Numbers: {json_file}", markup=False)
    if output is None:
        err.print("Next: add -o report.html for the report with pictures", markup=False)
