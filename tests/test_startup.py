"""What a user waits for: importing the package and asking for help must not load torch."""

import subprocess
import sys

HEAVY = {"torch", "transformers", "pandas", "matplotlib", "h5py", "sklearn"}


def modules_after(code: str) -> set[str]:
    printing = f"import sys\n{code}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", printing], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not modules_after("import dynprobe") & HEAVY


def test_the_command_line_loads_nothing_heavy() -> None:
    assert not modules_after("import dynprobe.cli.main") & HEAVY
    assert "torch" in modules_after("import torch"), "the check must be able to fail"


def test_starting_a_captured_command_loads_neither_torch_nor_transformers() -> None:
    assert not modules_after(
        "import dynprobe.cli.capture, dynprobe.capture.inject, dynprobe.capture.settings, dynprobe.storage.folder"
    ) & {"torch", "transformers", "h5py", "numpy"}
