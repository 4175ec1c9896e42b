"""The command `dynprobe`: its sub-commands and its exit codes."""

import os
import sys
import traceback

import click

from dynprobe import __version__
from dynprobe.cli.capture import capture
from dynprobe.cli.compare import compare
from dynprobe.cli.demo import demo
from dynprobe.cli.experiment import experiment
from dynprobe.cli.finetune import finetune
from dynprobe.cli.info import info
from dynprobe.cli.probe import probe
from dynprobe.cli.replay import replay
from dynprobe.cli.verify import verify
from dynprobe.errors import DynprobeError

INTERNAL_ERROR = 70

_EPILOG = """
\b
Exit codes: 0 ok, 1 threshold exceeded, 2 usage, 3 bad data, 4 nothing captured, 70 internal error.
Under `capture -- CMD` a non-zero exit code of CMD wins.

\b
Examples:
  dynprobe demo                                    fine-tune a small model twice and compare
  dynprobe capture -o runs/a -- python train.py    capture your own training, unmodified
  dynprobe finetune --model M --task wic --method r3f -o runs/c
  dynprobe experiment arms.yaml --jobs 2           methods x seeds, with a table of paired differences
  dynprobe replay output --texts t.txt -o runs/b   capture from the checkpoints of a training
  dynprobe compare runs/a runs/b -o report.html    what changed, layer by layer
  dynprobe probe runs/a -o probes.html             what training did to other tasks (captured with --probe-task)

\b
Studies that answer questions with many trainings lie in the folder analyses/ of a checkout, each with its page:
  make study STUDY=methods FORM=quick              run one again
"""


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="dynprobe")
def main() -> None:
    """See what fine-tuning does to a transformer: capture a training run, compare two of them, read the report."""


for command in (capture, finetune, experiment, replay, compare, probe, demo, info, verify):
    main.add_command(command)


def entry_point() -> None:
    """Run the command line; ends the process with one of the documented exit codes."""
    try:
        code = main.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except DynprobeError as error:
        click.echo(f"dynprobe: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception:  # noqa: BLE001 - the wall between our defects and the user's shell
        traceback.print_exc()
        click.echo("dynprobe: internal error; please report it with the lines above", err=True)
        sys.exit(INTERNAL_ERROR)
