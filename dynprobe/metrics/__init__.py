"""Measures of tensors: pure functions, batched over leading axes, on any device; they know no file and no model."""

from dynprobe.metrics.divergence import js_divergence, symmetric_kl_divergence
from dynprobe.metrics.grid import SvccaGrid, svcca_grid
from dynprobe.metrics.half_samples import svcca_half_samples
from dynprobe.metrics.isotropic_reference import IsotropicReference, isotropic_reference
from dynprobe.metrics.isotropy import (
    dimension_correlation,
    dimension_std,
    effective_rank,
    explained_variance_ratio,
    isoscore,
    mean_cosine,
    participation_ratio,
)
from dynprobe.metrics.probes import LinearProbe, fit_linear_probe
from dynprobe.metrics.resampling import (
    balanced_half_samples,
    bootstrap_interval,
    cca_chance_level,
    half_sample_bias,
    half_sample_interval,
    jackknife_interval,
    svcca_chance_level,
    wilson_interval,
)
from dynprobe.metrics.rogue import RogueDimensions, rogue_dimensions
from dynprobe.metrics.similarity import (
    cca_similarity,
    linear_cka_similarity,
    procrustes_similarity,
    pwcca_similarity,
    svcca_similarity,
)
from dynprobe.metrics.subspace import Subspace, principal_subspace, subspace_correlations
from dynprobe.metrics.trial_differences import (
    MeanDifference,
    Verdict,
    holm,
    paired_difference,
    verdict,
    welch_difference,
)
from dynprobe.metrics.trial_spread import SpreadTest, brown_forsythe, sd_ratio_interval
from dynprobe.metrics.trials import BestOfN, FailedRuns, TrialSummary, best_of_n, failed_runs, summarise_trials

__all__ = [
    "BestOfN",
    "FailedRuns",
    "IsotropicReference",
    "LinearProbe",
    "MeanDifference",
    "RogueDimensions",
    "SpreadTest",
    "Subspace",
    "SvccaGrid",
    "TrialSummary",
    "Verdict",
    "balanced_half_samples",
    "best_of_n",
    "bootstrap_interval",
    "brown_forsythe",
    "cca_chance_level",
    "cca_similarity",
    "dimension_correlation",
    "dimension_std",
    "effective_rank",
    "explained_variance_ratio",
    "failed_runs",
    "fit_linear_probe",
    "half_sample_bias",
    "half_sample_interval",
    "holm",
    "isoscore",
    "isotropic_reference",
    "jackknife_interval",
    "js_divergence",
    "linear_cka_similarity",
    "mean_cosine",
    "paired_difference",
    "participation_ratio",
    "principal_subspace",
    "procrustes_similarity",
    "pwcca_similarity",
    "rogue_dimensions",
    "sd_ratio_interval",
    "subspace_correlations",
    "summarise_trials",
    "svcca_chance_level",
    "svcca_grid",
    "svcca_half_samples",
    "svcca_similarity",
    "symmetric_kl_divergence",
    "verdict",
    "welch_difference",
    "wilson_interval",
]
