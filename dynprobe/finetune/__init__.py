"""Training methods for fine-tuning: regularisers, re-initialisation, optimisation; in a Trainer or a loop of one's own."""

from dynprobe.finetune.freelb import FreeLB
from dynprobe.finetune.method import Method, Option, StepLoss
from dynprobe.finetune.r3f import R3F
from dynprobe.finetune.r4f import R4F
from dynprobe.finetune.rdrop import RDrop
from dynprobe.finetune.registry import METHODS, method, parse_options, require_compatible
from dynprobe.finetune.smart import SMART
from dynprobe.finetune.streams import Streams
from dynprobe.finetune.trainer import MethodCallback, enable

__all__ = [
    "METHODS",
    "R3F",
    "R4F",
    "SMART",
    "FreeLB",
    "Method",
    "MethodCallback",
    "Option",
    "RDrop",
    "StepLoss",
    "Streams",
    "enable",
    "method",
    "parse_options",
    "require_compatible",
]
