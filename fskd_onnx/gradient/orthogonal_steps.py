"""Steps along orthogonalized momentum, for weights that are matrices.

The momentum of a matrix, U S V', is mostly of few directions. Where a step is U V' instead, rare
directions move as far as common ones (Muon: Jordan et al. 2024, "Muon: an optimizer for hidden
layers in neural networks"; Bernstein and Newhouse 2024, "Old optimizer, new norm"). What is left of
a student's error after its closed form is of many directions and small in each.

``torch.optim.Muon`` takes matrices alone, and multiplies them in bfloat16, which most processors
do slowly and none to the digits that a fit is repeated to.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, int, int]

# As published: the momentum, and the quintic of the iteration with so many rounds of it.
_MOMENTUM = 0.95
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ROUNDS = 5


class OrthogonalSteps(torch.optim.Optimizer):
    """Steps of a given size, whatever that of the gradient is.

    Each group has one tensor, its ``shape`` as (groups, rows, columns), and ``lr``, the root mean
    square of a step.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        """Start at rest.

        Args:
            groups: see the class.
        """
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make one step."""
        for group in self.param_groups:
            (values,) = group["params"]
            if values.grad is None:
                continue
            state = self.state[values]
            momentum = state.setdefault("momentum", torch.zeros_like(values))
            momentum.mul_(_MOMENTUM).add_(values.grad)
            ahead = values.grad + _MOMENTUM * momentum  # as of Nesterov
            direction = orthogonalized(ahead.reshape(group["shape"])).reshape(values.shape)
            size = direction.square().mean().sqrt()
            if size > 0:  # else nothing that is aimed at depends on the weight
                values.sub_(direction, alpha=float(group["lr"] / size))


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return matrices with all singular values near 1, and the same singular vectors.

    The polynomial of the iteration is applied to the smaller Gram matrix G = X X'::

        X := (a + b G + c G^2) X      G := (a + b G + c G^2)^2 G

    Args:
        matrices: (groups, rows, columns).

    Returns:
        The same shape; zeros for zeros. Singular values end within 0.3 and 1.25 where they were
        more than a thousandth of the norm of their matrix, else lower.
    """
    if matrices.shape[1] > matrices.shape[2]:
        turned: Tensor = orthogonalized(matrices.mT).mT
        return turned
    largest = matrices.abs().amax(dim=(1, 2), keepdim=True)
    wide = matrices / torch.where(largest > 0, largest, 1.0)
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp_min(1.0)
    gram = wide @ wide.mT
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    whole = eye.expand_as(gram)
    for _ in range(_ROUNDS):
        factor = _A * eye + _B * gram + _C * gram @ gram
        whole = factor @ whole
        gram = factor @ gram @ factor
    found: Tensor = whole @ wide
    return found


def as_matrices(values: Tensor, groups: int) -> Shape | None:
    """Return the shape as which steps of a weight are orthogonalized; None for rows or columns.

    Args:
        values: the weight as it is stored; its first axis is divided among the groups.
        groups: how many.
    """
    rows, columns = len(values) // groups, values.numel() // len(values)
    return (groups, rows, columns) if min(rows, columns) > 1 else None
