"""What can go wrong for a user, each with the exit code that the command line gives it."""


class DynprobeError(Exception):
    """Base of all errors that say: expected, got, where, what to do. Exit code 3 (bad data)."""

    exit_code = 3


class UsageError(DynprobeError):
    """The call itself cannot be carried out: contradictory options, an output that exists. Exit code 2."""

    exit_code = 2


class RunFormatError(DynprobeError):
    """A file or folder is not what the run format allows: damaged, hostile, half-written or too new."""


class StepNotFoundError(DynprobeError, KeyError):
    """A run has no snapshot of the step that was asked for."""

    def __str__(self) -> str:
        """Show the message itself; KeyError would show its repr."""
        return str(self.args[0])


class ProbeSetError(DynprobeError):
    """Inputs that cannot be a probe set: empty, all padding, inconsistent shapes."""


class TaskDataError(DynprobeError):
    """Labelled data that cannot be a task: unreadable, missing columns, one class only."""


class IncompatibleRunsError(DynprobeError):
    """Two runs that cannot be compared: another probe set, other layers or heads."""


class CaptureError(DynprobeError):
    """A live model that cannot be recorded: no attention probabilities, NaN activations, disk full."""


class NothingCapturedError(DynprobeError):
    """A wrapped program ended well but no snapshot was taken. Exit code 4."""

    exit_code = 4
