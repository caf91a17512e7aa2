"""Whole models on samples; what is wrong is said of what it is wrong with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fskd_onnx.errors import SamplesError
from fskd_onnx.options import Preprocess
from fskd_onnx.runtime.forward import forward
from fskd_onnx.runtime.providers import open_runtime
from fskd_onnx.samples.sources import load_samples
from fskd_onnx.serialization.interface import input_specs
from tests.helpers import build


def test_a_sample_that_cannot_be_read_is_no_fault_of_the_model(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name)
    model = build("net (float[N,3,4,4] x) => (float[N,3,4,4] y) { y = Relu(x) }")
    samples = load_samples(tmp_path, input_specs(model), Preprocess(preset="unit"))
    (tmp_path / "b.png").write_bytes(b"broken")
    with pytest.raises(SamplesError, match=r"^\S*b\.png: "):
        forward(open_runtime(["cpu"]), model, samples, np.arange(2), None, "model.onnx")
