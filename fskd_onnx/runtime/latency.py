"""How long models take in the ONNX Runtime of this machine, next to each other.

A machine is faster at one moment than at another, so models run in turns, forwards and backwards,
and each is compared with the first one of the same turn; the median of these ratios is the result.
In a turn a model runs several times. The least of these times counts, since whatever else the
machine does only adds to it, and all models run equally often. Sessions are made as a user makes
them: threads, their spinning and the memory arena are the runtime's own choice. The threads of a
session spin on for a moment once its run is over, so the first run of a model in a turn does not
count.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.runtime.session_run import named_errors
from fskd_onnx.serialization.interface import InputSpec

_WARM_UP = 2
_LEAST_TURNS, _MOST_TURNS = 5, 40
# Of a model in a turn: seconds that its runs are to take together, and how many they may be.
_TURN_SECONDS, _LEAST_RUNS, _MOST_RUNS = 0.05, 2, 30


@dataclass(frozen=True)
class Latency:
    """How long models take.

    Attributes:
        seconds: median of a run of each model.
        ratios: median of each model's time by that of the first model in the same turn.
        quartiles: of the same, the first and the third.
        turns: how many there were.
    """

    seconds: tuple[float, ...]
    ratios: tuple[float, ...]
    quartiles: tuple[tuple[float, float], ...]
    turns: int


def compare_latency(
    models: Mapping[str, onnx.ModelProto],
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    runtime: Runtime,
    limit: float = 20.0,
) -> Latency:
    """Return how long models take that read the same inputs.

    Args:
        models: at least one, by what to call it; the others are compared with the first.
        feeds: what a run of each reads, by the name of the input.
        runtime: whose providers run the models.
        limit: seconds that runs may take together; five turns are made in any case.

    Raises:
        ModelError: a model cannot run.
    """
    users = replace(runtime, as_users_run=True)
    sessions = []
    for (name, model), fed in zip(models.items(), feeds, strict=True):
        with named_errors(name):
            session = users.session(model)
            for _ in range(_WARM_UP):
                session.run(None, dict(fed))
            sessions.append((session, fed))
    slowest = max(_seconds(*each, 1) for each in sessions)
    runs = min(max(math.ceil(_TURN_SECONDS / max(slowest, 1e-9)), _LEAST_RUNS), _MOST_RUNS)
    turns: list[list[float]] = []
    start = time.perf_counter()
    while len(turns) < _LEAST_TURNS or (
        len(turns) < _MOST_TURNS and time.perf_counter() - start < limit
    ):
        step = 1 if len(turns) % 2 == 0 else -1
        turns.append([_seconds(*each, runs) for each in sessions[::step]][::step])
    ratios = [[turn[at] / turn[0] for turn in turns] for at in range(len(sessions))]
    first, third = (np.quantile(ratios, part, axis=1).tolist() for part in (0.25, 0.75))
    return Latency(
        tuple(median(turn[at] for turn in turns) for at in range(len(sessions))),
        tuple(map(median, ratios)),
        tuple(zip(first, third, strict=True)),
        len(turns),
    )


def random_feeds(
    specs: Sequence[InputSpec], shapes: Mapping[str, Sequence[int]], seed: int
) -> dict[str, NDArray[Any]]:
    """Return what a run reads where there are no samples: noise, and zeros for what is no float.

    Args:
        specs: the inputs.
        shapes: of each in the run, by name.
        seed: of the noise.
    """
    rng = np.random.default_rng(seed)
    return {
        spec.name: (
            rng.standard_normal(shapes[spec.name]).astype(spec.dtype)
            if np.issubdtype(spec.dtype, np.floating)
            else np.zeros(shapes[spec.name], spec.dtype)
        )
        for spec in specs
    }


def _seconds(
    session: onnxruntime.InferenceSession, feeds: Mapping[str, NDArray[Any]], runs: int
) -> float:
    """Return the least seconds of some runs, behind one that does not count."""
    fed = dict(feeds)
    session.run(None, fed)
    found = []
    for _ in range(runs):
        start = time.perf_counter()
        session.run(None, fed)
        found.append(time.perf_counter() - start)
    return min(found)
