"""Started by every Python process under ``dynprobe capture -- CMD``: waits for transformers' Trainer and adds capture to it.

This folder stands on PYTHONPATH, so this file runs at interpreter start. It imports nothing heavy, runs the sitecustomize
that it hides, and no fault of its own may reach the program.
"""

import functools
import importlib.machinery
import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

_HERE = os.path.dirname(os.path.abspath(__file__))
_TARGET = "transformers.trainer"


class _TrainerFinder:
    """Import hook that patches the Trainer right after its module was executed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != _TARGET:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_patch(module: ModuleType) -> None:
                execute(module)
                _patch(module)

            spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


def _patch(module: ModuleType) -> None:
    original = module.Trainer.__init__

    @functools.wraps(original)
    def init_with_capture(self: object, *args: object, **kwargs: object) -> None:
        original(self, *args, **kwargs)
        try:
            _make_importable()
            from dynprobe.capture.injected import attach_from_environment

            attach_from_environment(self)  # type: ignore[arg-type]
        except Exception as error:
            _report(error)

    module.Trainer.__init__ = init_with_capture


def _make_importable() -> None:
    """Let a program find the dynprobe that started it, also where that is not installed, and nothing that lies beside it."""
    if importlib.util.find_spec("dynprobe") is None:
        package = os.path.dirname(os.path.dirname(_HERE))
        spec = importlib.util.spec_from_file_location("dynprobe", os.path.join(package, "__init__.py"))
        if spec is not None and spec.loader is not None:
            sys.modules["dynprobe"] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules["dynprobe"])


def _report(error: Exception) -> None:
    """Say why a training is not captured, here and to the command that waits."""
    print(f"dynprobe: this training is not captured: {error}", file=sys.stderr)
    try:
        import json

        with open(os.environ["DYNPROBE_STATUS"], "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"event": "fault", "reason": f"{error} ({sys.executable})"}) + "\n")
    except (OSError, KeyError):
        pass


def _run_hidden_sitecustomize() -> None:
    """Run the sitecustomize that would have been found without ours."""
    rest = [entry for entry in sys.path if os.path.abspath(entry or os.getcwd()) != _HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", rest)
    if spec is not None and spec.loader is not None:
        hidden = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = hidden
        spec.loader.exec_module(hidden)


if os.environ.get("DYNPROBE_CAPTURE"):
    sys.meta_path.insert(0, _TrainerFinder())
_run_hidden_sitecustomize()
