"""Students that other tools make without training, for `tests.benchmarks.compression`.

===============  ==================================================================================
torch-pruning    magnitude pruning of dependency groups (Fang et al., "DepGraph: Towards Any
                 Structural Pruning", 2023), L1, the same ratio everywhere; of the torch network
onnxsim          structured pruning of the ONNX file, then its own closed-form fine-tuning on the
                 same samples
===============  ==================================================================================

Neither takes a budget, so the ratio that they do take is found by bisection. Neither is needed for
anything else: ``pip install torch-pruning onnxsim``.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import torch
from numpy.typing import NDArray

from fskd_onnx.compression.costs import count_costs, run_shapes
from fskd_onnx.passes import Canonicalize
from fskd_onnx.serialization.interface import input_specs
from models.build import teacher_path
from models.data import CLASSES
from models.export import INPUT, export
from models.zoo import teacher

_STEPS = 8
_LARGEST = 0.95


def rival_student(
    rival: str, network: str, part: float, images: NDArray[np.float32]
) -> onnx.ModelProto:
    """Return the largest student of a rival that leaves no more than a part of multiply-adds.

    Args:
        rival: a key of `RIVALS`.
        network: a key of `models.zoo.TEACHERS`.
        part: of the teacher's multiply-adds, 0..1.
        images: unlabelled samples, float32, N x 1 x 28 x 28.
    """
    budget = part * macs(onnx.load(teacher_path(network)))
    prune, finish = RIVALS[rival]
    low, high = 0.0, _LARGEST  # ratios that are too small, and large enough
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if macs(prune(network, middle)) <= budget else (middle, high)
    return finish(network, prune(network, high), images)


def macs(model: onnx.ModelProto) -> int:
    """Return the multiply-adds of a model for one sample."""
    shapes, count = run_shapes(input_specs(model), None)
    return count_costs(gs.import_onnx(Canonicalize()(model).model), shapes, count).total.macs


def _torch_pruning(network: str, ratio: float) -> onnx.ModelProto:
    tp: Any = importlib.import_module("torch_pruning")
    own = copy.deepcopy(teacher(network))
    classifiers = [
        module
        for module in own.modules()
        if isinstance(module, torch.nn.Linear) and module.out_features == CLASSES
    ]
    tp.pruner.BasePruner(
        own,
        torch.zeros(1, 1, 28, 28),
        importance=tp.importance.GroupMagnitudeImportance(p=1),
        pruning_ratio=ratio,
        ignored_layers=classifiers,
    ).step()
    with TemporaryDirectory() as folder:
        return onnx.load(export(own, Path(folder) / "student.onnx"))


def _onnxsim(network: str, ratio: float) -> onnx.ModelProto:
    onnxsim: Any = importlib.import_module("onnxsim")
    model: onnx.ModelProto = onnxsim.apply_structured_pruning(
        _simplified(network), sparsity=ratio, importance_norm="l1"
    )
    return model


def _simplified(network: str) -> onnx.ModelProto:
    """Return a teacher without batch normalization, at which its pruning stops."""
    onnxsim: Any = importlib.import_module("onnxsim")
    model: onnx.ModelProto = onnxsim.simplify(onnx.load(teacher_path(network)))[0]
    return model


def _as_it_is(
    network: str, student: onnx.ModelProto, images: NDArray[np.float32]
) -> onnx.ModelProto:
    return student


def _onnxsim_fine_tuned(
    network: str, student: onnx.ModelProto, images: NDArray[np.float32]
) -> onnx.ModelProto:
    onnxsim: Any = importlib.import_module("onnxsim")
    model: onnx.ModelProto = onnxsim.apply_pruning_finetune(
        _simplified(network), student, [{INPUT: images}]
    )
    return model


_Prune = Callable[[str, float], onnx.ModelProto]
_Finish = Callable[[str, onnx.ModelProto, NDArray[np.float32]], onnx.ModelProto]

RIVALS: dict[str, tuple[_Prune, _Finish]] = {
    "torch-pruning": (_torch_pruning, _as_it_is),
    "onnxsim": (_onnxsim, _onnxsim_fine_tuned),
}
"""How each prunes by a ratio, and what it does with the student then."""
