"""An order in which dimensions that say the same stand together, for maps of correlations."""

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from dynprobe.metrics._arrays import Array


def correlation_order(correlation: Array) -> np.ndarray:
    """Order of the dimensions in which strongly correlated ones stand together; the sign of a correlation does not matter.

    Parameters
    ----------
    correlation
        Shape (d, d), symmetric, in [-1, 1], as :func:`dynprobe.metrics.dimension_correlation` gives it; d at least 2.

    Returns
    -------
    numpy.ndarray
        A permutation of the d dimensions.

    Raises
    ------
    ValueError
        For another shape, or values that are not finite or outside [-1, 1].

    Notes
    -----
    Leaves of the tree of average linkage with distance 1 - |correlation|, turned so that neighbours are close
    (Bar-Joseph et al. 2001). Groups are found only where there are any: of independent dimensions the order means nothing.

    Examples
    --------
    >>> correlation_order(np.array([[1.0, 0.0, -0.9], [0.0, 1.0, 0.0], [-0.9, 0.0, 1.0]])).tolist()
    [1, 2, 0]
    """
    table = np.asarray(correlation, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or len(table) < 2:
        raise ValueError(f"`correlation` must be square, with at least 2 dimensions; got shape {table.shape}")
    if not np.isfinite(table).all() or np.abs(table).max() > 1:
        raise ValueError("`correlation` must be from -1 to 1; got other values")
    distance = 1.0 - np.abs(table + table.T) / 2
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), method="average", optimal_ordering=True)
    return np.asarray(leaves_list(tree))
