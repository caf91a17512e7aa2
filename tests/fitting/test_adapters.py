"""Families of adapters against what they stand for, and the extension point that they are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fskd_onnx.errors import MatchError
from fskd_onnx.fitting import family as families_base
from fskd_onnx.fitting.adapters import (
    FAMILIES,
    Factors,
    Kernel,
    Pointwise,
    families_for,
    families_of,
    is_sparse,
    need_patches,
)
from fskd_onnx.fitting.family import BlockRegressors, Family
from fskd_onnx.linalg.backends import solved_by
from fskd_onnx.linalg.factorization import Factor, Factorization
from fskd_onnx.linalg.moments import Moments, sum_moments
from fskd_onnx.linalg.ridge import CrossValidation, Ridge, span
from fskd_onnx.options import AdapterName
from fskd_onnx.passes.analysis.affine import AffineMap
from tests.helpers import build, linears
from tests.regressions import SOLVERS, Floats, draw


@pytest.fixture(params=SOLVERS)
def solver(request: pytest.FixtureRequest) -> Iterator[str]:
    with solved_by(request.param):
        yield request.param


def weights(n: int = 4, m: int = 6, groups: int = 2, seed: int = 7) -> tuple[Floats, Floats]:
    """A block: its matrix and its bias."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((groups, n, m)), rng.standard_normal((groups, n))


def fit(family: Family, gathered: Moments, ridge: float) -> AffineMap:
    """Fit to moments of the gathered regressors."""
    own = family.moments(gathered)
    return family.solver(own.of_x, ridge)(own)


def validate(folds: list[Moments], family: Family) -> CrossValidation:
    return family.cross_validate(folds, np.arange(family.prior.shape[1]), None)


def test_some_targets_of_a_family_are_tested_for_all() -> None:
    folds = [Moments.of(*draw(seed, count=40, n=5)) for seed in range(4)]
    block, bias = weights(n=5)
    rows = np.array([0, 2, 4])
    for family in (
        Kernel.of(BlockRegressors(block, bias)),
        Pointwise.of(BlockRegressors(block, bias)),
    ):
        found = family.cross_validate([fold.of_targets(rows) for fold in folds], rows, None)
        parts = [family.moments(fold) for fold in folds]
        error = 0.0
        for part in parts:
            rest = sum_moments(parts) - part
            fitted = family.solver(rest.of_x, found.ridge)(rest)
            error += part.of_targets(rows).error(fitted.of_targets(rows))
        assert found.error_after == pytest.approx(error)


@pytest.mark.parametrize("targets", [5, 130])
def test_all_families_are_compared_by_the_same_targets(targets: int) -> None:
    drawn = [draw(seed, count=40, n=targets) for seed in range(3)]
    folds = [Moments.of(x[:1], y[:1]) for x, y in drawn]
    m = folds[0].of_x.gram.shape[1]
    rng = np.random.default_rng(5)
    none = np.zeros((1, 0), np.intp)
    pair = (
        Factor(rng.standard_normal((2, m, 1)), none),
        Factor(rng.standard_normal((targets, 2, 1)), none),
    )
    factors = Factorization((pair,), ((),), ())
    block = BlockRegressors(
        factors.kernel[np.newaxis], rng.standard_normal((1, targets)), factors=factors
    )
    found = [family.of(block) for family in families_of("auto")]
    before = [validate(folds, family) for family in found]
    assert len({type(family) for family in found}) == 3
    assert [one.error_before for one in before] == pytest.approx([before[0].error_before] * 3)
    assert [one.energy for one in before] == pytest.approx([before[0].energy] * 3)


@pytest.mark.parametrize("targets", [1, 2, 63, 64, 65, 500])
def test_tested_targets_are_spread_evenly(targets: int) -> None:
    rows = families_base.tested_targets(targets)
    assert len(rows) <= families_base._TESTED_TARGETS
    assert rows[0] == 0
    assert set(np.diff(rows)) <= {-(-targets // families_base._TESTED_TARGETS)}
    assert targets - rows[-1] <= -(-targets // families_base._TESTED_TARGETS)


# n outputs of m inputs: as many as there are dimensions, fewer, and more.
SHAPES = [(4, 6, 1), (5, 5, 2), (7, 3, 2), (6, 1, 3), (9, 4, 1)]


@pytest.mark.parametrize("gathered", ["patches", "coordinates"])
@pytest.mark.parametrize(("n", "m", "groups"), SHAPES)
def test_a_pointwise_adapter_is_that_from_the_outputs(
    n: int, m: int, groups: int, gathered: str
) -> None:
    block, bias = weights(n, m, groups)
    rng = np.random.default_rng(8)
    x = rng.standard_normal((groups, m, 200)) + 1
    y = rng.standard_normal((groups, n, m)) @ x + rng.standard_normal((groups, n, 200))
    outputs = block @ x + bias[..., np.newaxis]
    ridge, r = 0.01, min(n, m)

    eye = np.tile(np.eye(n), (groups, 1, 1))
    theirs = Moments.of(outputs, y)
    expected = Ridge(theirs.of_x, eye).solver(ridge)(theirs)

    if gathered == "patches":
        family, sums = Pointwise.of(BlockRegressors(block, bias)), Moments.of(x, y)
    else:
        basis, coordinates = span(block)
        family = Pointwise.of(BlockRegressors(basis, bias, of_outputs=True))
        sums = Moments.of(coordinates @ x, y)
    # The ridge is relative to the mean diagonal; of n numbers, n - r are zero now left out.
    adapter = fit(family, sums, ridge * r / n)
    assert adapter.matrix.shape == (groups, n, r)
    q = family.fused(adapter, eye).matrix
    np.testing.assert_allclose(q, expected.matrix, rtol=0, atol=1e-9)
    # The family's regressors have no bias in them.
    shift = adapter.shift - np.einsum("gij,gj->gi", q, bias)
    np.testing.assert_allclose(shift, expected.shift, rtol=0, atol=1e-8)
    assert sums.error(family.as_block_map(adapter)) == pytest.approx(theirs.error(expected))


def test_cross_validation_of_patches_is_that_of_outputs() -> None:
    x, y = draw(8)
    block, bias = weights()
    outputs = block @ x + bias[..., np.newaxis]
    halves = [slice(0, 100), slice(100, None)]
    one, other = (
        validate([Moments.of(values[..., half], y[..., half]) for half in halves], family)
        for values, family in (
            (x, Pointwise.of(BlockRegressors(block, bias))),
            (outputs, Kernel.of(BlockRegressors(np.tile(np.eye(4), (2, 1, 1)), np.zeros((2, 4))))),
        )
    )
    assert one.ridge == other.ridge
    for name in ("error_before", "error_after", "energy"):
        assert getattr(one, name) == pytest.approx(getattr(other, name))
    assert sum_moments(one.folds).count == 200
    np.testing.assert_allclose(
        sum_moments(one.folds).of_y.cross, Moments.of(block @ x, y).of_y.cross, rtol=1e-9
    )


dimensions = st.integers(1, 6)


@given(dimensions, dimensions, st.integers(1, 3), st.booleans(), st.integers(0, 10**6))
def test_what_is_fused_is_the_map_of_the_gathered_regressors(
    n: int, m: int, groups: int, orthonormal: bool, seed: int
) -> None:
    """The fused block gives what the adapter says of the gathered regressors."""
    rng = np.random.default_rng(seed)
    block, bias = weights(n, m, groups, seed)
    pointwise = Pointwise.of(BlockRegressors(block, bias))
    read = np.tile(np.eye(m), (groups, 1, 1))  # gathered regressors, as a map of the patches
    if orthonormal:
        basis, read = span(block)
        pointwise = Pointwise.of(BlockRegressors(basis, bias, of_outputs=True))
    families: list[tuple[Family, Floats]] = [(pointwise, read)]
    if not orthonormal:
        families.append((Kernel.of(BlockRegressors(block, bias)), read))
        rotation = np.linalg.qr(rng.standard_normal((groups, m, m)))[0][..., : max(1, m - 1)]
        kernel = Kernel.of(BlockRegressors(block @ rotation, bias, rotation))
        families.append((kernel, rotation.transpose(0, 2, 1)))
    for family, as_map in families:
        step = rng.standard_normal(family.prior.shape)
        adapter = AffineMap(family.prior + step, rng.standard_normal((groups, n)))
        of_kernels = family.name == "kernel"
        fused = family.fused(adapter, block).matrix
        # What the regressors do not span is left as it is.
        patches = rng.standard_normal((groups, m, 5))
        spanned = as_map.transpose(0, 2, 1) @ (as_map @ patches)
        spanned = spanned if of_kernels and family.basis is not None else patches
        as_block = family.as_block_map(adapter)
        np.testing.assert_allclose(
            fused @ spanned, as_block.matrix @ (as_map @ spanned), rtol=0, atol=1e-9
        )
        np.testing.assert_array_equal(as_block.shift, adapter.shift)
        # The ridge weighs the change by its own norm: of the kernel, or of Q.
        whole = block if of_kernels else np.tile(np.eye(n), (groups, 1, 1))
        change = family.fused(adapter, whole).matrix - whole
        assert np.linalg.norm(change) == pytest.approx(np.linalg.norm(step))


@given(dimensions, dimensions, st.integers(1, 3), st.integers(0, 10**6))
def test_unchanged_is_the_block_as_it_is(n: int, m: int, groups: int, seed: int) -> None:
    block, bias = weights(n, m, groups, seed)
    basis, coordinates = span(block)
    for family, as_map in (
        (Pointwise.of(BlockRegressors(block, bias)), None),
        (Pointwise.of(BlockRegressors(basis, bias, of_outputs=True)), coordinates),
        (Kernel.of(BlockRegressors(block, bias)), None),
    ):
        unchanged = family.fused(family.unchanged, block)
        np.testing.assert_array_equal(unchanged.matrix, block)
        np.testing.assert_array_equal(unchanged.shift, bias)
        as_block = family.as_block_map(family.unchanged)
        matrix = as_block.matrix if as_map is None else as_block.matrix @ as_map
        np.testing.assert_allclose(matrix, block, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(as_block.shift, bias)


def test_a_kernel_in_a_subspace_leaves_the_rest_alone() -> None:
    block, bias = weights()
    basis = np.tile(np.eye(6)[:, [1, 4]], (2, 1, 1))
    family = Kernel.of(BlockRegressors(block[..., [1, 4]], bias, basis))
    x, y = draw(9)
    adapter = fit(family, Moments.of(x[:, [1, 4]], y), 1e-3)
    fused = family.fused(adapter, block).matrix
    np.testing.assert_array_equal(fused[..., [0, 2, 3, 5]], block[..., [0, 2, 3, 5]])
    np.testing.assert_allclose(fused[..., [1, 4]], adapter.matrix, rtol=1e-12)


def test_a_sparse_kernel_is_solved_on_its_support(solver: str) -> None:
    x, y = draw(10)
    block, bias = weights()
    block *= np.random.default_rng(11).random(block.shape) < 0.4
    block[0, 1] = 0.0  # a row without any weight
    block[1, 2] = block[1, 3] * 2  # two rows that share a support
    assert is_sparse(block)
    family = Kernel.of(BlockRegressors(block, bias, keep_zeros=True))
    sums = Moments.of(x, y)
    fitted = fit(family, sums, 0.3)
    assert not fitted.matrix[block == 0].any()
    dx, dy = (values - values.mean(axis=2, keepdims=True) for values in (x, y))
    strength = 0.3 * np.mean([np.trace(part @ part.T) / len(part) for part in dx])
    for group, row in np.ndindex(2, 4):
        kept = np.flatnonzero(block[group, row])
        rows = np.vstack([dx[group, kept].T, np.sqrt(strength) * np.eye(len(kept))])
        targets = np.append(dy[group, row], np.sqrt(strength) * block[group, row, kept])
        expected = np.linalg.lstsq(rows, targets, rcond=None)[0]
        np.testing.assert_allclose(fitted.matrix[group, row, kept], expected, rtol=1e-9)
    # Of some targets only, as they are tested.
    rows = np.array([0, 3])
    own = family.solver(sums.of_x, 0.3, rows)(sums.of_targets(rows))
    np.testing.assert_allclose(own.matrix, fitted.matrix[:, rows], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("zeros", "sparse"), [(0, False), (5, False), (6, True), (12, True)])
def test_half_zeros_are_sparse(zeros: int, sparse: bool) -> None:
    matrix = np.ones((1, 3, 4))
    matrix.reshape(-1)[:zeros] = 0
    assert is_sparse(matrix) == sparse


def test_every_option_has_its_families() -> None:
    assert set(FAMILIES) == set(AdapterName)
    for name in ("pointwise", "kernel", "factors"):
        assert [family.name for family in families_of(name)] == [name]
    assert set(families_of("auto")) == {Pointwise, Kernel, Factors}
    assert not need_patches(families_of("pointwise"))
    assert need_patches(families_of("auto"))


SPARSE = """g (float[N,4,3,3] x) => (float[N,{n},3,3] y) <float[{n},{m},1,1] w> {{
    [n] y = Conv <group = {groups}> (x, w)
}}"""


@pytest.mark.parametrize("adapter", ["pointwise", "kernel", "auto"])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("zeros", [1, 3])
def test_a_sparse_kernel_is_left_to_families_that_keep_its_zeros(
    zeros: int, groups: int, adapter: str
) -> None:
    w = np.ones((4, 4 // groups, 1, 1))
    w[:zeros] = 0
    text = SPARSE.format(n=4, m=4 // groups, groups=groups)
    linear = linears(build(text, {"w": w}))["n"]
    families = families_of(adapter)
    if adapter == "auto":  # of a block of one node, its kernel is all of its factors
        assert Factors not in families_for(linear, families)[0]
        families = (Pointwise, Kernel)
    if zeros == 1:
        assert families_for(linear, families) == (families, False)
    elif Kernel in families:
        assert families_for(linear, families) == ((Kernel,), True)
    elif groups == 4:  # an adapter of a single channel only scales
        assert families_for(linear, families) == (families, False)
    else:
        with pytest.raises(MatchError, match=r"75% zeros, which a pointwise.*a kernel adapter ke"):
            families_for(linear, families)


def test_a_family_is_added_as_the_docstring_says() -> None:
    class Shift(Family):
        name = "shift"
        needs_patches = keeps_zeros = can_change_targets = False

        @classmethod
        def of(cls, block: BlockRegressors) -> Shift:
            return cls(block.block_map, block.bias, support=np.zeros(block.block_map.shape, bool))

        def weight_change(self, change: Floats, matrix: Floats) -> Floats:
            return np.zeros_like(matrix)

    x, y = draw(12)
    block, bias = weights()
    family = Shift.of(BlockRegressors(block, bias))
    adapter = fit(family, Moments.of(x, y), 0.1)
    np.testing.assert_array_equal(family.fused(adapter, block).matrix, block)
    np.testing.assert_allclose(adapter.shift, (y - block @ x).mean(axis=2))
    found = validate([Moments.of(*draw(seed)) for seed in range(3)], family)
    assert found.error_after < found.error_before
