"""What holds while any of the stories runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from onnxruntime import InferenceSession

from fskd_onnx.linalg import threads
from fskd_onnx.options import FitOptions, RunOptions
from fskd_onnx.pipeline.compare import compare
from fskd_onnx.pipeline.compress import compress
from fskd_onnx.pipeline.fit import fit
from fskd_onnx.pipeline.match import match
from fskd_onnx.runtime.providers import Runtime
from tests.compressible import options, samples_of, teacher
from tests.students import with_fresh_weights

RUN = RunOptions(providers=("cpu",))
STORIES: list[Callable[..., object]] = [
    lambda one, other, samples: fit(one, other, samples, FitOptions(RUN)),
    # Of a student of other weights, channels are settled by activations.
    lambda one, other, samples: match(one, with_fresh_weights(other), samples, RUN),
    lambda one, other, samples: compare(one, other, samples, RUN, blocks=True),
    lambda one, _, samples: compress(one, samples, options()),
]


@pytest.mark.parametrize("story", STORIES, ids=["fit", "match", "compare", "compress"])
def test_blas_keeps_to_one_thread(
    story: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    controller, _ = threads._blas()
    original = teacher("two blocks")
    student = compress(original, samples_of(original), options(no_fit=True)).model

    def counts() -> set[int]:
        return {info["num_threads"] for info in controller.info()}

    seen: list[set[int]] = []
    make = Runtime.session

    def session(*given: Any) -> InferenceSession:
        seen.append(counts())
        return make(*given)

    monkeypatch.setattr(Runtime, "session", session)
    with controller.limit(limits=2):
        story(original, student, samples_of(original))
        assert counts() == {2}
    assert seen
    assert all(found == {1} for found in seen)


@pytest.mark.parametrize("story", STORIES[::3], ids=["fit", "compress"])
def test_tasks_in_threads_give_the_same_bytes(
    story: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = teacher("two blocks")
    student = compress(original, samples_of(original), options(no_fit=True)).model
    controller, _ = threads._blas()
    made = []
    for count in (1, 3):
        monkeypatch.setattr(threads, "_blas", lambda count=count: (controller, count))
        made.append(story(original, student, samples_of(original)).model.SerializeToString())
    assert made[0] == made[1]
