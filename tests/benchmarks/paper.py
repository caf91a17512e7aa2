"""The paper's algorithm as published: the reference for accuracy and for speed.

T. Li et al., "Few Sample Knowledge Distillation for Efficient Network Compression", CVPR 2020,
algorithm 1 and the code that came with it (github.com/LTH14/FSKD). Per convolution, in order: run
both networks on all samples from their inputs to the convolution, the student as corrected so far;
keep all activations, X of the student and Y of the teacher at the channels that the student kept, a
row per position of a sample; solve ``min ||X Q' - Y||`` by least squares in float32; absorb ``Q``::

    W' = Q W        b' = Q b

There is no shift, no ridge, no choice on held-out samples, and the classifier stays as it is. Batch
normalisation is folded first, since Q does not commute with it. A grouped convolution cannot absorb
a Q that mixes its channels, so it stays as it is; the paper aligns behind the pointwise convolution
that follows.

Running from the input for every convolution makes this quadratic in the depth of the network.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
from numpy.typing import NDArray

from fskd_onnx.matching.channels import match_models
from fskd_onnx.passes import Canonicalize
from fskd_onnx.passes.analysis.affine import AffineMap
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.base import export
from fskd_onnx.passes.write_weights import write_weights
from fskd_onnx.runtime.providers import open_runtime
from fskd_onnx.serialization.model_files import ModelSource, load_model

Floats = NDArray[np.float32]

_BATCH = 100  # images per run; the published code runs all at once, which changes no result


def paper_fit(
    teacher: ModelSource,
    student: ModelSource,
    samples: Floats,
    providers: Sequence[str] = ("cpu",),
) -> onnx.ModelProto:
    """Fit a student as the paper does.

    Args:
        teacher: the original network.
        student: the pruned network, whose kept channels its weights tell.
        samples: inputs of both networks, N x channels x height x width.
        providers: execution providers of ONNX Runtime, in order.

    Returns:
        The student, batch normalisation folded, with corrected convolutions.
    """
    runtime = open_runtime(providers)
    models = [Canonicalize()(load_model(source)).model for source in (teacher, student)]
    wide, narrow = (gs.import_onnx(model) for model in models)
    for pair in match_models(wide, narrow).usable:
        linear = next(view for view in _linears(narrow) if view.name == pair.student)
        if linear.op != "Conv" or linear.groups > 1:
            continue
        if pair.channels is None:
            raise ValueError(f"{pair.student}: the weights do not tell which channels were kept")
        target = _activations(runtime.session(_up_to(wide, str(pair.teacher))), samples)
        found = _activations(runtime.session(_up_to(narrow, linear.output.name)), samples)
        adapter = np.linalg.lstsq(found, target[:, list(pair.channels)], rcond=None)[0].T
        exact = adapter.astype(np.float64)
        unmix = AffineMap(exact[np.newaxis], np.zeros((1, len(exact))))
        write_weights(narrow, linear, unmix.after(linear.affine))
    return export(narrow, like=models[1])


def _linears(graph: gs.Graph) -> list[Linear]:
    return [view for view in find_linear(graph) if isinstance(view, Linear)]


def _up_to(graph: gs.Graph, output: str) -> onnx.ModelProto:
    """Cut off everything that a tensor does not depend on; the tensor becomes the output."""
    part = graph.copy()
    part.outputs = [part.tensors()[output]]
    part.cleanup()
    for tensor in part.outputs:
        tensor.dtype = np.dtype(np.float32)
    return gs.export_onnx(part)


def _activations(session: onnxruntime.InferenceSession, samples: Floats) -> Floats:
    """Give the output of a network, samples * positions x channels."""
    name = session.get_inputs()[0].name
    parts = [
        np.asarray(session.run(None, {name: samples[start : start + _BATCH]})[0])
        for start in range(0, len(samples), _BATCH)
    ]
    maps = np.concatenate(parts)
    return np.moveaxis(maps, 1, -1).reshape(-1, maps.shape[1])
