"""Training methods for fine-tuning: regularisers, re-initialisation, optimisation; in a Trainer or a loop of one's own."""

from dynprobe.finetune.anchor import PullToStart, pull_to_start
from dynprobe.finetune.batch_norm import BatchNormBaseline
from dynprobe.finetune.bert_adam import BertAdam, bias_correction_ratio
from dynprobe.finetune.freelb import FreeLB
from dynprobe.finetune.insertion import insert_before_classifier, remove_before_classifier
from dynprobe.finetune.isobn import IsoBN
from dynprobe.finetune.layer_rates import LayerRates, layerwise_param_groups, layerwise_rates
from dynprobe.finetune.method import Method, Option, StepLoss
from dynprobe.finetune.mixout import apply_mixout, remove_mixout
from dynprobe.finetune.r3f import R3F
from dynprobe.finetune.r4f import R4F
from dynprobe.finetune.rdrop import RDrop
from dynprobe.finetune.registry import METHODS, method, parse_options, require_compatible
from dynprobe.finetune.reinit import reinitialise
from dynprobe.finetune.saved import restore_saved_state
from dynprobe.finetune.smart import SMART
from dynprobe.finetune.streams import Streams
from dynprobe.finetune.trainer import MethodCallback, enable

__all__ = [
    "METHODS",
    "R3F",
    "R4F",
    "SMART",
    "BatchNormBaseline",
    "BertAdam",
    "FreeLB",
    "IsoBN",
    "LayerRates",
    "Method",
    "MethodCallback",
    "Option",
    "PullToStart",
    "RDrop",
    "StepLoss",
    "Streams",
    "apply_mixout",
    "bias_correction_ratio",
    "enable",
    "insert_before_classifier",
    "layerwise_param_groups",
    "layerwise_rates",
    "method",
    "parse_options",
    "pull_to_start",
    "reinitialise",
    "remove_before_classifier",
    "remove_mixout",
    "require_compatible",
    "restore_saved_state",
]
