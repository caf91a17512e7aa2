"""The error that a refit leaves is what regression on the patches themselves leaves."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fskd_onnx.compression import rank_errors
from fskd_onnx.compression.factor_ranks import candidate_ranks
from fskd_onnx.compression.rank_errors import RankErrors
from fskd_onnx.fitting.factored import factorization_of
from fskd_onnx.linalg.factor_fit import fit_factors
from fskd_onnx.linalg.factor_step import Target
from fskd_onnx.linalg.factorization import Factorization
from fskd_onnx.passes.analysis.factored_blocks import chain_of
from fskd_onnx.passes.analysis.factorizable import Form, LinearShape, Rank, full_rank
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from tests.helpers import Array, linears
from tests.passes.factorized import CASES, FORMS, pass_of


def rank_curve(
    form: Form,
    linear: Linear,
    gram: Array,
    ranks: Sequence[Rank],
    *,
    ridge: float = 0.0,
    held_out: Array | None = None,
) -> list[float]:
    return RankErrors(linear, gram, ridge=ridge, held_out=held_out).curve(form, ranks)


def patches(size: int, columns: int, seed: int = 0) -> Array:
    """Draw centred patches whose values go together, as those of images do."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((size, size)) / np.arange(1, size + 1)
    drawn = mixed @ rng.standard_normal((size, columns))
    return np.asarray(drawn - drawn.mean(axis=1, keepdims=True))


def chain(form: Form, case: str, rank: Rank) -> tuple[Linear, Factorization]:
    """Give a node, and the chain of its kernel's singular values."""
    model = FORMS[form][0][case].model()
    ((name, linear),) = linears(model).items()
    graph = gs.import_onnx(pass_of(form, {name: rank})(model).model)
    block = chain_of([view for view in find_linear(graph) if isinstance(view, Linear)])
    assert block is not None
    return linear, factorization_of(block)


def informed(form: Form, linear: Linear, factors: Factorization, gram: Array) -> Factorization:
    """Give the chain whose nodes in front are those of singular values where x varies as it does.

    Each node sees x, and k of it stand behind: K (x, k) is U S V' where L' K is, M = L L' being the
    mean moments of x.
    """
    shape, (chain,) = LinearShape.of(linear), factors.chains
    n, c, taps = shape.outputs, shape.inputs, shape.taps
    kernel, apart = linear.matrix.reshape(n, c, taps), gram.reshape(c, taps, c, taps)

    def in_front(by_inputs: Array, moments: Array, rank: int) -> Array:
        lower = np.linalg.cholesky(moments)
        basis = np.linalg.svd(lower.T @ by_inputs)[0][:, :rank]
        return np.asarray(np.linalg.solve(lower.T, basis).T)

    rank = len(chain[0].weights)
    if form == Form.DECOUPLE:
        rows = [in_front(kernel[:, i].T, apart[i, :, i], rank // c) for i in range(c)]
        return factors.replaced(0, 0, chain[0].with_matrix(np.stack(rows)))
    if form == Form.SPATIAL_SVD:
        first = int(np.prod(shape.kernel[: shape.first_axes]))
        seen = c * first
        by_inputs = kernel.reshape(n, seen, -1).swapaxes(0, 1).reshape(seen, -1)
        alike = np.einsum("xbyb->xy", gram.reshape(seen, taps // first, seen, taps // first))
        return factors.replaced(0, 0, chain[0].with_matrix(in_front(by_inputs, alike, rank)[None]))
    alike = np.einsum("ckdk->cd", apart)
    into = in_front(kernel.swapaxes(0, 1).reshape(c, -1), alike, rank)
    out = np.linalg.svd(linear.matrix[0] @ gram @ linear.matrix[0].T)[0][:, : len(chain[1].weights)]
    behind = np.einsum("ic,cd,ndt->nit", into, alike, kernel)  # as `into` is orthonormal there
    core = np.einsum("no,nit->oit", out, behind).reshape(1, out.shape[1], -1)
    found = factors.replaced(0, 0, chain[0].with_matrix(into[None]))
    return found.replaced(0, 1, chain[1].with_matrix(core))


def left_by_regression(linear: Linear, factors: Factorization, columns: Array) -> float:
    response = linear.matrix[0] @ columns
    seen = factors.last_patches.of(columns)
    solution, *_ = np.linalg.lstsq(seen.T, response.T, rcond=None)
    return float(np.sum((response - solution.T @ seen) ** 2) / np.sum(response**2))


STATIC = [(form, case) for form, case in CASES if case not in ("upper", "lower")]


def all_ranks(form: Form, linear: Linear) -> list[Rank]:
    full = full_rank(form, LinearShape.of(linear))
    return list(itertools.product(*(range(1, most) for most in full)))


@pytest.mark.parametrize(("form", "case"), STATIC)
def test_errors_are_those_of_a_regression_on_what_the_last_node_sees(form: Form, case: str) -> None:
    rank = FORMS[form][1]
    linear, factors = chain(form, case, rank)
    columns = patches(linear.shape[2], 400)
    ranks = all_ranks(form, linear)
    found = dict(zip(ranks, rank_curve(form, linear, columns @ columns.T, ranks), strict=True))
    if form == Form.CHANNEL_SVD:
        values = np.linalg.svd(linear.matrix[0] @ columns, compute_uv=False) ** 2
        tails = [float(np.sum(values[r:]) / np.sum(values)) for (r,) in ranks]
        np.testing.assert_allclose(list(found.values()), tails, atol=1e-9)
        return
    own = informed(form, linear, factors, columns @ columns.T)
    assert rank_curve(form, linear, columns @ columns.T, [rank]) == [
        pytest.approx(left_by_regression(linear, own, columns), abs=1e-6)
    ]
    # Beside others none is above what its own nodes leave; that of a smaller rank may be below.
    assert found[rank] <= left_by_regression(linear, own, columns) + 1e-6


@pytest.mark.parametrize(("form", "case"), STATIC)
def test_a_fit_leaves_no_more(form: Form, case: str) -> None:
    rank = FORMS[form][1]
    linear, factors = chain(form, case, rank)
    columns = patches(linear.shape[2], 400, seed=1)
    gram = columns @ columns.T
    cross = linear.matrix[0] @ gram
    target = Target(gram, cross, float(np.sum(cross * linear.matrix[0])))
    start = factors if form == Form.CHANNEL_SVD else informed(form, linear, factors, gram)
    fitted = fit_factors(start, target, lambda right: np.linalg.solve(gram, right.T).T)
    (error,) = rank_curve(form, linear, gram, [rank])
    assert target.error(fitted.kernel) / target.energy <= error + 1e-6
    assert 0.0 < error < 0.9


@pytest.mark.parametrize(("form", "case"), STATIC)
def test_held_out_errors_are_those_of_the_same_solution_on_other_samples(
    form: Form, case: str
) -> None:
    rank, ridge = FORMS[form][1], 0.01
    linear, factors = chain(form, case, rank)
    columns, others = (patches(linear.shape[2], count, seed=2) for count in (30, 500))
    gram = columns @ columns.T
    ridged = gram + ridge * np.trace(gram) / len(gram) * np.eye(len(gram))
    weights = linear.matrix[0]
    if form == Form.CHANNEL_SVD:
        vectors = np.linalg.eigh(weights @ ridged @ weights.T)[1][:, -rank[0] :]
        kernel = vectors @ vectors.T @ weights
    else:
        seen = informed(form, linear, factors, ridged).last_patches.of(np.eye(len(gram)))
        last = np.linalg.solve(seen @ ridged @ seen.T, seen @ ridged @ weights.T).T
        kernel = last @ seen
    expected = np.sum(((weights - kernel) @ others) ** 2) / np.sum((weights @ others) ** 2)
    (found,) = rank_curve(form, linear, gram, [rank], ridge=ridge, held_out=others @ others.T)
    assert found == pytest.approx(float(expected), rel=1e-5)
    (in_sample,) = rank_curve(form, linear, gram, [rank])
    assert in_sample < found


def test_nodes_in_front_that_know_the_patches_leave_less_than_those_of_the_kernel() -> None:
    ratios = []
    for form, case in STATIC:
        if form != Form.CHANNEL_SVD:
            rank = FORMS[form][1]
            linear, factors = chain(form, case, rank)
            columns = patches(linear.shape[2], 400, seed=3)
            (error,) = rank_curve(form, linear, columns @ columns.T, [rank])
            ratios.append(error / left_by_regression(linear, factors, columns))
    assert np.median(ratios) < 1.0


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(STATIC), st.integers(1, 60), st.integers(0, 99), st.floats(1e-6, 1e6))
@example((Form.SPATIAL_SVD, "3 x 3"), 2, 0, 3.0)
@example((Form.DECOUPLE, "3 x 3"), 3, 0, 3.0)
def test_errors_fall_with_the_rank_and_do_not_depend_on_scale(
    form_and_case: tuple[Form, str], columns: int, seed: int, scale: float
) -> None:
    form, case = form_and_case
    (linear,) = linears(FORMS[form][0][case].model()).values()
    drawn = patches(linear.shape[2], columns, seed)
    drawn[::3] = 0.0  # dead inputs
    gram, ranks = drawn @ drawn.T, all_ranks(form, linear)
    errors = rank_curve(form, linear, gram, ranks)
    assert all(0.0 <= error <= 1.0 for error in errors)
    for (one, error), (other, least) in itertools.product(
        zip(ranks, errors, strict=True), repeat=2
    ):
        if all(a <= b for a, b in zip(one, other, strict=True)):
            assert least <= error
    np.testing.assert_allclose(rank_curve(form, linear, scale * gram, ranks), errors, atol=1e-6)
    # The order of the ranks is any.
    assert rank_curve(form, linear, gram, ranks[::-1]) == errors[::-1]


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("columns", [20, 400])
def test_large_systems_lose_little_to_single_precision(
    form: Form, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (linear,) = linears(FORMS[form][0]["3 x 3"].model()).values()
    drawn = patches(linear.shape[2], columns)
    ranks = all_ranks(form, linear)
    double = rank_curve(form, linear, drawn @ drawn.T, ranks)
    monkeypatch.setattr(rank_errors, "_LARGE", 0)
    single = rank_curve(form, linear, drawn @ drawn.T, ranks)
    np.testing.assert_allclose(single, double, atol=1e-3)


@pytest.mark.parametrize("form", Form)
def test_a_response_that_does_not_vary_has_no_error(form: Form) -> None:
    (linear,) = linears(FORMS[form][0]["3 x 3"].model()).values()
    nothing = np.zeros((linear.shape[2],) * 2)
    ranks = candidate_ranks(form, linear, 1)
    assert rank_curve(form, linear, nothing, ranks) == [0.0] * len(ranks)


def test_moments_that_are_not_finite_are_refused() -> None:
    (linear,) = linears(FORMS[Form.TUCKER][0]["3 x 3"].model()).values()
    gram = np.full((linear.shape[2],) * 2, np.nan)
    for form in Form:
        with pytest.raises(ValueError, match="not finite"):
            rank_curve(form, linear, gram, [FORMS[form][1]])
