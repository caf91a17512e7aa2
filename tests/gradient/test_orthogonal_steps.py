"""Matrices are orthogonalized, and steps along them are of the size that was asked for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fskd_onnx.gradient.orthogonal_steps import OrthogonalSteps, as_matrices, orthogonalized

SIDES = st.integers(1, 6)


def matrices(groups: int, rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(groups, rows, columns, generator=generator, dtype=torch.float64)


@given(SIDES, SIDES, SIDES, st.integers(0, 100))
def test_singular_values_come_near_one(groups: int, rows: int, columns: int, seed: int) -> None:
    given_ones = matrices(groups, rows, columns, seed)
    found = torch.linalg.svdvals(orthogonalized(given_ones))
    before = torch.linalg.svdvals(given_ones)
    felt = before > 1e-3 * given_ones.norm(dim=(1, 2))[:, None]
    assert (found <= 1.25).all()
    assert (found[felt] >= 0.3).all()


def test_singular_vectors_stay() -> None:
    u, _, v = torch.linalg.svd(matrices(1, 4, 4, 0)[0])
    values = torch.tensor([1.0, 0.5, 0.2, 0.1], dtype=torch.float64)
    found = u.T @ orthogonalized((u * values @ v)[None])[0] @ v.T
    assert (found - found.diag().diag()).abs().max() < 1e-12
    assert (found.diag() > 0.6).all()


@given(SIDES, SIDES, st.sampled_from([1e-200, 1e-3, 1e200]))
def test_scale_and_side_do_not_matter(rows: int, columns: int, scale: float) -> None:
    given_ones = matrices(2, rows, columns, 3)
    found = orthogonalized(given_ones)
    torch.testing.assert_close(orthogonalized(scale * given_ones), found, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(orthogonalized(given_ones.mT), found.mT, rtol=1e-9, atol=1e-12)


def test_single_precision_is_enough_where_directions_are_rare() -> None:
    u, _, v = torch.linalg.svd(matrices(1, 8, 20, 1)[0], full_matrices=False)
    steep = (u * torch.logspace(0, -3, 8, dtype=torch.float64) @ v)[None]
    torch.testing.assert_close(
        orthogonalized(steep.float()).double(), orthogonalized(steep), rtol=0, atol=2e-3
    )


def test_zeros_stay_zeros() -> None:
    assert not orthogonalized(torch.zeros(2, 3, 4)).any()
    still = torch.ones(3, 4, requires_grad=True)
    still.grad = torch.zeros(3, 4)
    OrthogonalSteps([{"params": [still], "lr": 1.0, "shape": (1, 3, 4)}]).step()
    assert (still == 1).all()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_step_has_the_size_asked_for_and_goes_downhill(scale: float) -> None:
    target = matrices(1, 3, 8, 0)[0].reshape(3, 2, 2, 2)
    values = torch.zeros_like(target, requires_grad=True)
    steps = OrthogonalSteps([{"params": [values], "lr": 0.5, "shape": (1, 3, 8)}])
    loss = scale * (values - target).square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    steps.step()
    assert values.detach().square().mean().sqrt() == pytest.approx(0.5)
    assert (values.detach() * target).sum() > 0


def test_it_finds_what_the_gradient_hardly_shows() -> None:
    # Curvature of 1 and of 1e-4: plain descent would take ten thousand steps for the second.
    curvature = torch.tensor([1.0, 1e-2, 1e-4], dtype=torch.float64)
    target = torch.eye(3, dtype=torch.float64)
    values = torch.zeros_like(target, requires_grad=True)
    groups = [{"params": [values], "lr": 0.05, "shape": (1, 3, 3)}]
    steps = OrthogonalSteps(groups)
    for step in range(200):
        steps.param_groups[0]["lr"] = 0.05 * (1 - step / 200)
        steps.zero_grad()
        loss = ((values - target).square() * curvature).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        steps.step()
    assert (values.detach() - target).abs().max() < 0.05


def test_only_matrices_are_taken_as_such() -> None:
    assert as_matrices(torch.zeros(8, 3, 3, 3), 1) == (1, 8, 27)
    assert as_matrices(torch.zeros(8, 3, 3, 3), 2) == (2, 4, 27)
    assert as_matrices(torch.zeros(5, 7), 1) == (1, 5, 7)
    assert as_matrices(torch.zeros(8, 1, 3, 3), 8) is None  # depthwise
    assert as_matrices(torch.zeros(1, 16, 3, 3), 1) is None
    assert as_matrices(torch.zeros(16, 1), 1) is None
