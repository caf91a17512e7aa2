"""Errors behind an activation that cuts off values: Relu at 0, Relu6 at 0 and 6.

Where prediction and target both lie beyond a bound, the activation gives the bound for both, so
their difference is no error. A least squares fit takes that into account by new targets
(asymmetric reconstruction, Zhang et al. 2016, "Accelerating very deep convolutional networks for
classification and detection", section 3.2)::

    t' = min(u, low) where t <= low,   max(u, high) where t >= high,   t elsewhere

with the prediction u and the target t.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

F = TypeVar("F", bound=np.floating)


def clip(values: NDArray[F], low: float, high: float) -> NDArray[F]:
    """Return values cut off at two bounds, infinite where there is none, in their own type."""
    clipped: NDArray[F] = np.clip(values, *_typed(values, low, high))
    return clipped


def relu_aware_targets(
    prediction: NDArray[F], target: NDArray[F], low: float, high: float
) -> NDArray[F]:
    """Return the targets t' of the module's docstring.

    Args:
        prediction: u, of any shape.
        target: t, of the same shape.
        low: lower bound of the activation, -inf where there is none.
        high: upper bound, inf where there is none.
    """
    # Between two bounds, which are both t itself where t is not cut off: several times faster than
    # to choose by a condition.
    least, most = _typed(target, low, high)
    far = np.finfo(target.dtype).max
    floor = target.copy() if most is None else np.minimum(target, most)
    ceiling = target.copy() if least is None else np.maximum(target, least)
    with np.errstate(over="ignore"):
        if least is not None:
            floor -= (target <= least) * far
        if most is not None:
            ceiling += (target >= most) * far
    np.maximum(floor, prediction, out=floor)
    bounded: NDArray[F] = np.minimum(floor, ceiling, out=floor)
    return bounded


def _typed(values: NDArray[F], low: float, high: float) -> tuple[F | None, F | None]:
    """Return bounds in the type of some values; None for an infinite one."""
    least, most = (
        values.dtype.type(bound) if math.isfinite(bound) else None for bound in (low, high)
    )
    return least, most
