"""The house rules that a machine can check: who imports whom, sizes, documentation."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "dynprobe"

# room: (rooms of ours, packages from outside) that it may import. Any room may use the standard library.
ALLOWED: dict[str, tuple[set[str], set[str]]] = {
    "errors": (set(), set()),
    "metrics": (set(), {"torch", "numpy", "scipy"}),
    "probe_inputs": ({"errors"}, {"numpy"}),
    "probe_set": ({"errors", "probe_inputs"}, {"numpy"}),
    "probe_task": ({"errors", "probe_set"}, {"numpy"}),
    "tasks": ({"errors", "probe_set", "probe_task"}, {"numpy", "pandas", "sklearn"}),
    "storage": ({"errors", "probe_set"}, {"h5py", "numpy"}),
    "run": ({"errors", "probe_set", "storage"}, {"numpy"}),
    "result": ({"errors"}, {"numpy", "pandas"}),
    "capture": ({"errors", "probe_set", "probe_task", "storage"}, {"torch", "transformers", "numpy"}),
    "analysis": (
        {"errors", "metrics", "run", "result", "probe_set"},
        {"torch", "numpy", "scipy", "sklearn", "pandas"},
    ),
    "finetune": ({"errors", "metrics"}, {"torch", "transformers", "accelerate", "safetensors"}),
    "report": ({"errors", "result"}, {"numpy", "scipy", "pandas", "matplotlib", "seaborn", "jinja2", "markupsafe"}),
    "experiments": (
        {
            "errors",
            "probe_set",
            "probe_task",
            "tasks",
            "storage",
            "run",
            "result",
            "capture",
            "metrics",
            "analysis",
            "finetune",
            "report",
        },
        {"torch", "transformers", "numpy", "pandas", "joblib", "yaml"},
    ),
    "cli": (
        {
            "errors",
            "probe_set",
            "probe_task",
            "tasks",
            "storage",
            "run",
            "result",
            "capture",
            "metrics",
            "analysis",
            "finetune",
            "report",
        }
        | {"experiments", "__init__"},
        {"click", "rich", "pandas"},
    ),
    "__main__": ({"cli"}, set()),
    "__init__": ({"analysis", "capture", "errors", "probe_set", "report", "result", "run", "tasks"}, set()),
}

# Optional packages and late imports, each in the file that needs it, inside a function.
LATE_IMPORTS = {
    "tasks/files.py": {"pyarrow"},
    "tasks/glue.py": {"datasets"},
    "capture/models.py": {"peft"},
    "capture/live.py": {"dynprobe.analysis.drift"},
    "capture/bootstrap/sitecustomize.py": {"dynprobe.capture.injected", "dynprobe.capture.injected_loops"},
}
# Files that are only imported by who has installed the optional package that they are about.
OPTIONAL_FILES = {"capture/lightning.py": {"lightning"}}
_STANDARD = {"__future__"}

MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS = 400, 60, 10


def files(package: Path = PACKAGE) -> list[Path]:
    return sorted(path for path in package.rglob("*.py"))


def room_of(path: Path, package: Path = PACKAGE) -> str:
    return path.relative_to(package).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Each imported module, and whether the import stands at the top level of the file."""
    top = {id(node) for node in getattr(tree, "body", ())}
    for branch in getattr(tree, "body", ()):
        if isinstance(branch, ast.If):  # `if TYPE_CHECKING:`
            top |= {id(node) for node in branch.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in top
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, id(node) in top


def broken_rules(package: Path = PACKAGE) -> list[str]:
    import sys

    found = []
    for path in files(package):
        room = room_of(path, package)
        ours, outside = ALLOWED.get(room, (set(), set()))
        where = str(path.relative_to(package))
        if room not in ALLOWED:
            found.append(f"{where}: is in no known room")
        for module, at_top in imports(ast.parse(path.read_text(encoding="utf-8"))):
            first, *rest = module.split(".")
            late = LATE_IMPORTS.get(where, set())
            if first in late or module in late:
                if at_top:
                    found.append(f"{where}: imports {module} at the top, not inside a function")
            elif first == "dynprobe":
                target = rest[0] if rest else "__init__"
                if target not in (ours | {room}):
                    found.append(f"{where}: room {room} must not import {module}")
                if f"{'/'.join(rest)}.py" in OPTIONAL_FILES and room != "__init__":
                    found.append(f"{where}: only `dynprobe` itself may import {module}, when it is asked for")
                if not at_top and room not in ("cli", "__init__"):
                    found.append(f"{where}: imports {module} inside a function")
            elif first not in (outside | OPTIONAL_FILES.get(where, set()) | _STANDARD | set(sys.stdlib_module_names)):
                found.append(f"{where}: room {room} must not import {module}")
    return found


def test_rooms_import_only_what_they_may() -> None:
    assert broken_rules() == []


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("metrics/divergence.py", "import h5py", "room metrics must not import h5py"),
        ("metrics/divergence.py", "from dynprobe.run import Run", "room metrics must not import dynprobe.run"),
        ("report/page.py", "from dynprobe.run import open_run", "room report must not import dynprobe.run"),
        ("storage/reader.py", "import torch", "room storage must not import torch"),
        ("run.py", "def f():\n    from dynprobe.errors import UsageError", "inside a function"),
        ("capture/models.py", "import peft", "at the top"),
        ("capture/recorder.py", "import lightning", "room capture must not import lightning"),
        ("capture/recorder.py", "from dynprobe.capture.lightning import LightningCallback", "only `dynprobe` itself"),
        ("helpers/things.py", "import os", "is in no known room"),
    ],
)
def test_the_check_can_fail(tmp_path: Path, file: str, line: str, complaint: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{line}\n", encoding="utf-8")
    assert any(complaint in sentence for sentence in broken_rules(tmp_path))


def test_sizes_stay_readable() -> None:
    too_big = []
    for path in files():
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > MAX_FILE:
            too_big.append(f"{path.name}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
                length = (body[-1].end_lineno or 0) - body[0].lineno + 1
                n_parameters = len(node.args.posonlyargs) + len(node.args.args) + len(node.args.kwonlyargs)
                if length > MAX_FUNCTION or n_parameters > MAX_PARAMETERS:
                    too_big.append(f"{path.name}:{node.lineno} {node.name}: {length} lines, {n_parameters} parameters")
    assert too_big == []


def test_public_names_are_few_and_load() -> None:
    import dynprobe

    assert len(dynprobe.__all__) <= 12
    assert all(getattr(dynprobe, name) is not None for name in dynprobe.__all__)
    with pytest.raises(AttributeError, match="must be asked for one of"):
        dynprobe.unknown  # noqa: B018
