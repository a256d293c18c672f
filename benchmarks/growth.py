"""How a cost grows: cost = fixed + factor * size ** exponent, fitted, and what it comes to at another size.

Errors are taken for relative. An interval holds every value that fits not much worse than the best one, whatever the
other two parameters are then (profile likelihood, F with one degree of freedom): a fixed part that few sizes tell badly
from a small exponent widens it, as it should.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import f

EXPONENTS = np.linspace(0, 2.5, 251)
FIXED_PARTS = 201  # from nothing to the least cost
LEAST_SIZES = 3
Interval = tuple[float, float]


@dataclass(frozen=True)
class Growth:
    """Each with its 95 % interval. ``target``: the cost at the size asked for; ``linear``: the same where the exponent
    is taken to be 1."""

    exponent: float
    exponent_interval: Interval
    target: float
    target_interval: Interval
    linear: float
    linear_interval: Interval


def grown(sizes: Sequence[float], costs: Sequence[float], target: float) -> Growth:
    """Fit costs at sizes, both of shape (n,), and go on to ``target``.

    Raises ValueError for fewer than three sizes, for no more than three costs, or for what is not above 0.
    """
    x, y = np.asarray(sizes, float), np.asarray(costs, float)
    if x.shape != y.shape or len(set(x.tolist())) < LEAST_SIZES or len(x) <= LEAST_SIZES:
        raise ValueError(f"a fit takes {LEAST_SIZES} sizes or more and more costs than that; got {len(x)} costs")
    if not (np.isfinite([x, y]).all() and x.min() > 0 and y.min() > 0):
        raise ValueError("sizes and costs must be above 0")
    exponent, exponents, at, interval = _profile(x, y, target, EXPONENTS)
    _, _, linear, linear_interval = _profile(x, y, target, np.ones(1))
    return Growth(exponent, exponents, at, interval, linear, linear_interval)


def _profile(
    x: np.ndarray, y: np.ndarray, target: float, exponents: np.ndarray
) -> tuple[float, Interval, float, Interval]:
    """Exponent with interval, cost at ``target`` with interval. Of each exponent and fixed part the factor that fits
    best follows in closed form, and so does how far from it a factor may be."""
    parameters = 2 + (len(exponents) > 1)
    fixed = np.linspace(0, y.min(), FIXED_PARTS)[None, :, None]
    shape = (x / x.max()) ** exponents[:, None, None]  # (exponents, 1, n)
    weight = (shape**2 / y**2).sum(-1)  # (exponents, 1)
    factor = np.maximum((shape * (y - fixed) / y**2).sum(-1) / weight, 0)  # (exponents, fixed parts)
    misfit = (((fixed + factor[..., None] * shape - y) / y) ** 2).sum(-1)
    free = len(x) - parameters
    allowed = misfit.min() * (1 + f.ppf(0.95, 1, free) / free)
    inside = misfit <= allowed
    best = np.unravel_index(misfit.argmin(), misfit.shape)
    away = np.sqrt(np.where(inside, allowed - misfit, 0) / weight)
    reach = (target / x.max()) ** exponents[:, None]
    least = fixed[..., 0] + np.maximum(factor - away, 0) * reach
    most = fixed[..., 0] + (factor + away) * reach
    at = fixed[0, best[1], 0] + factor[best] * reach[best[0], 0]
    kept = exponents[inside.any(axis=1)]
    return (
        float(exponents[best[0]]),
        (float(kept.min()), float(kept.max())),
        float(at),
        (float(least[inside].min()), float(most[inside].max())),
    )
