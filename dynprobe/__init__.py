"""See what fine-tuning does to a transformer: capture a training run, compare two of them, read the report.

The public names are loaded when they are first used, so that importing the package is quick and does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dynprobe.analysis import compare
    from dynprobe.capture.callback import DynprobeCallback, attach
    from dynprobe.capture.lightning import LightningCallback as LightningCallback
    from dynprobe.capture.recorder import Recorder
    from dynprobe.capture.settings import CaptureSettings
    from dynprobe.errors import DynprobeError
    from dynprobe.probe_set import ProbeSet
    from dynprobe.report import write_report
    from dynprobe.result import Result
    from dynprobe.run import Run, open_run
    from dynprobe.tasks import load_task

_HOMES = {
    "CaptureSettings": "dynprobe.capture.settings",
    "DynprobeCallback": "dynprobe.capture.callback",
    "DynprobeError": "dynprobe.errors",
    "LightningCallback": "dynprobe.capture.lightning",  # not in __all__: a star import must not need Lightning
    "ProbeSet": "dynprobe.probe_set",
    "Recorder": "dynprobe.capture.recorder",
    "Result": "dynprobe.result",
    "Run": "dynprobe.run",
    "attach": "dynprobe.capture.callback",
    "compare": "dynprobe.analysis",
    "load_task": "dynprobe.tasks",
    "open_run": "dynprobe.run",
    "write_report": "dynprobe.report",
}

__all__ = [
    "CaptureSettings",
    "DynprobeCallback",
    "DynprobeError",
    "ProbeSet",
    "Recorder",
    "Result",
    "Run",
    "attach",
    "compare",
    "load_task",
    "open_run",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import the module of a public name when the name is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dynprobe' must be asked for one of {__all__}; got {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Names for tab completion."""
    return [*__all__, "__version__"]
