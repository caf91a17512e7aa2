"""Fits whose weights are much larger than those of like fits to almost the same samples.

Where a system has about as many unknowns as equations, least squares fits all that it sees with
weights that blow up, and is far off elsewhere (Belkin et al. 2019, "Reconciling modern
machine-learning practice and the classical bias-variance trade-off"). A ridge that was chosen on a
part of the samples may be too weak just there, and no error on samples that were fitted tells. The
weights do: fits to samples of which most are in common have weights of about one size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.external_data_helper import uses_external_data

from fskd_onnx.passes.analysis.random_nodes import bodies_of

Sizes = Mapping[str, float]
"""Root of the sum of squares of each tensor of floats that a model stores, by its name."""

# Measured on 110 fits of small random networks to 3-20 samples that stand: 5 grow more, and what is
# given out instead has about the same error on fresh samples (0.95 of it, in geometric mean). Of 5
# fits that stood and were worse than the student, 3 grew more; what is given out instead is better.
_MOST_GROWTH = 2.0
_NEGLIGIBLE = 1e-3  # relative to the largest tensor


def sizes_of(model: onnx.ModelProto) -> Sizes:
    """Return the sizes of a model's weights; those that were never loaded are not fitted."""
    sizes = {}
    for name, tensor in stored_tensors(model).items():
        if not uses_external_data(tensor):
            values = numpy_helper.to_array(tensor)
            if np.issubdtype(values.dtype, np.floating):
                sizes[name] = float(np.linalg.norm(values.astype(np.float64)))
    return sizes


def growth(sizes: Sizes, trials: Sequence[Sizes]) -> float:
    """Return by how much a fit's weights are larger than usual among the trials, at most.

    Args:
        sizes: of the fit.
        trials: of the fits to compare with, itself included or not.
    """
    shared = [name for name in sizes if all(name in other for other in trials)]
    usual = {name: float(np.median([other[name] for other in trials])) for name in shared}
    # Of next to nothing, growth says nothing.
    least = _NEGLIGIBLE * max(usual.values(), default=0.0)
    return max((sizes[name] / usual[name] for name in shared if usual[name] > least), default=1.0)


def steadiest(final: Sizes, trials: Sequence[Sizes]) -> int | None:
    """Return the trial whose fit to give out instead of the final one, whose weights blow up.

    Returns:
        The trial of least growth; None where the final fit is like the trials'.
    """
    if growth(final, trials) <= _MOST_GROWTH:
        return None
    return min(range(len(trials)), key=lambda trial: growth(trials[trial], trials))


def stored_tensors(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Return the tensors that a model stores, by name: initializers and Constants, also in bodies.

    Bodies may have tensors of one name, whose weights count as those of the last one then.
    """
    return _stored(model.graph)


def _stored(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    stored[node.output[0]] = attribute.t
        for body in bodies_of(node):
            stored |= _stored(body)
    return stored
