"""Run(s) in, Result out: what training did to a model, with sample size, interval and chance level of each number."""

from dynprobe.analysis.alignment import Alignment, align_steps
from dynprobe.analysis.attention import attention_js
from dynprobe.analysis.catalog import METRICS
from dynprobe.analysis.compare import compare
from dynprobe.analysis.isotropy import isotropy
from dynprobe.analysis.moments import (
    Moment,
    Pair,
    consecutive_pairs,
    moments,
    pairs_between,
    pairs_from_start,
    run_names,
)
from dynprobe.analysis.outputs import output_changes
from dynprobe.analysis.probe_runs import probe_runs
from dynprobe.analysis.probe_suite import probe_suite
from dynprobe.analysis.probing import probe_accuracy
from dynprobe.analysis.scores import output_scores
from dynprobe.analysis.similarity import hidden_state_similarity

__all__ = [
    "METRICS",
    "Alignment",
    "Moment",
    "Pair",
    "align_steps",
    "attention_js",
    "compare",
    "consecutive_pairs",
    "hidden_state_similarity",
    "isotropy",
    "moments",
    "output_changes",
    "output_scores",
    "pairs_between",
    "pairs_from_start",
    "probe_accuracy",
    "probe_runs",
    "probe_suite",
    "run_names",
]
