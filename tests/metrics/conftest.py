"""Make the slow reference importable by the tests of this folder, wherever pytest is started."""

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("metrics_reference", Path(__file__).with_name("reference.py"))
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
sys.modules["metrics_reference"] = _module
_spec.loader.exec_module(_module)
