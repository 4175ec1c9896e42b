"""Started by every Python process under ``dynprobe capture -- CMD``: waits for transformers' Trainer and torch's optimizers.

This folder stands on PYTHONPATH, so this file runs at interpreter start. It imports nothing heavy, runs the sitecustomize
that it hides, and no fault of its own may reach the program.
"""

import functools
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType

_HERE = os.path.dirname(os.path.abspath(__file__))
_MODELS = "transformers.modeling_utils"


class _PatchingFinder:
    """Import hook that patches modules right after they were executed."""

    def __init__(self, patches: dict[str, Callable[[ModuleType], None]]) -> None:
        self._patches = patches

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        patch = self._patches.pop(name, None)
        if patch is None:
            return None
        if not self._patches:
            sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_patch(module: ModuleType) -> None:
                execute(module)
                patch(module)

            spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


def _patch_trainer(module: ModuleType) -> None:
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


def _patch_optimizers(module: ModuleType) -> None:
    """Look on when an optimizer steps, once the program has loaded a model class of transformers."""
    torch = sys.modules["torch"]
    watchers: list[tuple[Callable[..., None], ...]] = []  # who looks on before and after a step; nobody when it cannot

    def find_watchers() -> None:
        watchers.append(())
        _make_importable()
        from dynprobe.capture.injected_loops import after_step, before_step

        watchers[0] = before_step, after_step

    def before(optimizer: object, _args: object, _kwargs: object) -> None:
        if torch.compiler.is_compiling():
            return  # a step that is being compiled, which no hook may be part of
        try:
            if not watchers and _MODELS in sys.modules:
                find_watchers()
            if watchers and watchers[0]:
                watchers[0][0](optimizer)
        except Exception as error:
            _report(error)

    def after(optimizer: object, _args: object, _kwargs: object) -> None:
        if torch.compiler.is_compiling():
            return
        try:
            if watchers and watchers[0]:
                watchers[0][1](optimizer)
        except Exception as error:
            _report(error)

    module.register_optimizer_step_pre_hook(before)
    module.register_optimizer_step_post_hook(after)


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
    sys.meta_path.insert(
        0, _PatchingFinder({"transformers.trainer": _patch_trainer, "torch.optim.optimizer": _patch_optimizers})
    )
_run_hidden_sitecustomize()
