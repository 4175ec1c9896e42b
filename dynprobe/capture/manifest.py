"""What the manifest of a run says about its snapshots and about the libraries that made them."""

import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import transformers

from dynprobe.capture.architecture import Architecture
from dynprobe.capture.plan import Plan

# What a run holds that does not say it.
_BEFORE_IT_COULD_BE_CHOSEN = {
    "attention_dtype": "float16",
    "attention_rows": "all",
    "cross_attention": True,
    "value_norms": False,
    "probe_tasks": {},
}


def contents_of(plan: Plan, architecture: Architecture) -> dict[str, Any]:
    """What each snapshot holds, in numbers, as JSON would give them back."""
    return {
        "attention_examples": plan.n_attention_examples,
        "attention_dtype": plan.attention_dtype,
        "attention_rows": plan.attention_rows,
        "cross_attention": plan.cross_attention,
        "value_norms": plan.value_norms,
        "probe_tasks": dict(plan.probe_tasks),
        **{
            stack.name: {
                "tokens": len(plan.rows[stack.name]),
                "layers": list(plan.layers[stack.name]),
                "n_layers": stack.n_layers,
                "n_heads": stack.n_heads,
                "d_model": stack.d_model,
            }
            for stack in architecture.stacks
        },
    }


def contents_said(manifest: Mapping[str, Any]) -> Any:
    """What a manifest says that the snapshots hold, also one from before some of it could be chosen; or ``None``."""
    said = manifest.get("contents")
    return {**_BEFORE_IT_COULD_BE_CHOSEN, **said} if isinstance(said, dict) else said


def versions() -> dict[str, str]:
    """Versions of what made the numbers of a run."""
    return {
        "dynprobe": sys.modules["dynprobe"].__version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "platform": f"{sys.platform}, {os.cpu_count()} cores",
    }
