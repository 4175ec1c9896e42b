"""Examples in docstrings say the truth, and everything public has a docstring."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import dynprobe

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(dynprobe.__path__, "dynprobe.") if ".bootstrap" not in module.name
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    module = importlib.import_module(name)
    failures, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert failures == 0


def test_public_functions_and_classes_are_documented_and_annotated() -> None:
    missing = []
    for name in MODULES:
        module = importlib.import_module(name)
        for key, value in vars(module).items():
            if key.startswith("_") or getattr(value, "__module__", None) != name:
                continue
            if inspect.isclass(value) or inspect.isfunction(value):
                if not inspect.getdoc(value):
                    missing.append(f"{name}.{key}: no docstring")
                if inspect.isfunction(value) and "return" not in value.__annotations__:
                    missing.append(f"{name}.{key}: no return annotation")
    assert missing == []
