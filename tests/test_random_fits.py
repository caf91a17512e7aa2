"""Random graphs with known truth: nothing that is reported of their fits is wrong.

``python -m tests.random_fits --count 10000 --jobs 2`` judges any number; here are some.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.helpers import Array, initializers
from tests.random_fits import LIMITS, judge, main, summary
from tests.random_graphs.case import draw
from tests.random_graphs.judging import Outcome, broken_limits

_CHUNK = 20
_CHUNKS = range(0, 100, _CHUNK)


@pytest.mark.parametrize("first", _CHUNKS)
def test_no_random_fit_breaks_a_limit(first: int) -> None:
    outcomes = [judge(seed) for seed in range(first, first + _CHUNK)]
    assert not broken_limits(LIMITS, outcomes), [
        (o.seed, fault) for o in outcomes for fault in o.faults
    ]
    # A tool that leaves everything alone would break no limit.
    findable, found = (sum(o.counts[key] for o in outcomes) for key in ("findable", "found"))
    assert found > 0.7 * findable
    assert sum(outcome.result == "accepted" for outcome in outcomes) > _CHUNK / 2


# Chains that are made otherwise in both networks or only scale, widths that are alike, and dropped
# residual blocks without an activation: cases that tell surroundings from places.
_ALIKE = (400423, 410125, 410564, 410652, 410881, 501358, 600267, 3800268)
# Residual blocks that were dropped: a node in one of them or around it looks more like one of the
# student's than its partner does, or as much.
_DROPPED = (
    *(700383, 701163, 701181, 701220, 701974, 815003, 815590, 816019, 900534, 900732, 902564),
    4101954,
)
# Shortcuts around a single node that were dropped, beside factors that look like what is left.
_SHORTCUTS = (816511, 817699, 817979, 818651, 902000)


@pytest.mark.parametrize("seed", [*_ALIKE, *_DROPPED, *_SHORTCUTS])
def test_surroundings_that_are_alike_are_no_pair(seed: int) -> None:
    assert [text for kind, text in judge(seed).faults if kind == "wrong pair"] == []


def test_a_fit_to_all_samples_is_like_those_to_some_of_them() -> None:
    """Fits without a fifth leave a sixth of the error; that to all is worse than the student."""
    assert judge(3800414).faults == []


def test_a_seed_gives_the_same_case_twice() -> None:
    one, other = draw(5), draw(5)
    for name in ("teacher", "student"):
        models = [getattr(case, name).model.SerializeToString() for case in (one, other)]
        assert models[0] == models[1]
    assert all((one.samples()[key] == values).all() for key, values in other.samples().items())
    assert one.options == other.options


def test_the_truth_is_where_the_weights_of_a_slice_come_from() -> None:
    count = 0
    for case in map(draw, range(60)):
        if not case.recipe.exact:
            continue
        teacher, student = (_weights_by_output(m.origin) for m in (case.teacher, case.student))
        for output in student.keys() & teacher.keys() & case.truth.keys():
            for row, channel in zip(student[output], case.truth[output], strict=True):
                assert np.isin(row, teacher[output][channel]).all(), (case.seed, output)
                count += 1
    assert count > 300


def _weights_by_output(model: onnx.ModelProto) -> dict[str, Array]:
    """Give the weights of linear nodes, output channels on the first axis, dense ones only."""
    values, found = initializers(model), {}
    for node in model.graph.node:
        attributes = {a.name: a.i for a in node.attribute}
        output = node.output[0].removesuffix("/product")
        if node.op_type == "Conv" or (node.op_type == "Gemm" and attributes["transB"]):
            found[output] = values[node.input[1]]
        elif node.op_type in ("Gemm", "MatMul") and node.input[1] in values:
            found[output] = values[node.input[1]].T
        elif node.op_type == "ConvTranspose" and attributes["group"] == 1:
            found[output] = np.swapaxes(values[node.input[1]], 0, 1)
    return found


def test_the_command_counts_and_names_what_breaks_a_limit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoilt(seed: int) -> Outcome:
        faults = [("wrong pair", "a is paired with b")] if seed == 7 else []
        return Outcome(seed, result="accepted", faults=faults)

    monkeypatch.setattr("tests.random_fits.judge", spoilt)
    assert main(["--count", "5"]) == 0
    assert main(["--count", "5", "--seed", "5"]) == 1
    out = capsys.readouterr().out
    assert "seed 7: wrong pair: a is paired with b" in out
    assert "limit broken: wrong pair: seeds 7" in out


def test_few_may_be_worse_on_fresh_samples() -> None:
    worse = Outcome(0, result="accepted", faults=[("worse on fresh samples", "1 -> 2")])
    fine = [Outcome(seed, result="accepted") for seed in range(1, 1000)]
    assert broken_limits(LIMITS, [worse, *fine]) == {}
    assert broken_limits(LIMITS, [worse, *fine[:100]]) == {"worse on fresh samples": [0]}
    assert "1 worse on fresh samples" in summary([worse, *fine])
