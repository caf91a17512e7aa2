"""How many columns a regression needs: ``python -m tests.benchmarks.columns``.

A column is one position of one sample. ``fskd_onnx.runtime.column_sampling`` takes so many for each
unknown of a block, and 4,096 at least; here are 5, 20, 100 and all there are, with two draws of 500
samples each, so that what columns matter can be told from what samples matter. Accuracy, and
agreement with the teacher's answers, are on training images outside of the samples; the test images
have no part in choices.
"""

from __future__ import annotations

import argparse
import time
from unittest import mock

import numpy as np
import onnx
from numpy.typing import NDArray

from fskd_onnx.options import FitOptions, RunOptions
from fskd_onnx.pipeline.fit import fit
from fskd_onnx.runtime import column_sampling
from fskd_onnx.runtime.providers import open_runtime
from fskd_onnx.runtime.session_run import run
from fskd_onnx.runtime.tensor_store import download, upload
from fskd_onnx.serialization.model_files import ModelSource, load_model
from models.build import student_path, teacher_path
from models.data import Split, load, normalise

_SAMPLES = 500
_EVALUATION = 5000
_ALL = 10**9
_BATCH = 100
_STUDENTS = (("vgg16", "D"), ("resnet20", "inner50"))
_COLUMNS = (5, 20, 100, _ALL)


def main() -> None:
    """Print the table row by row."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.columns")
    parser.add_argument("--adapter", default="kernel", choices=("pointwise", "kernel", "auto"))
    adapter = parser.parse_args().adapter
    train = load("train")
    print(f"adapter: {adapter}, {_SAMPLES} samples, {_EVALUATION:,} other training images\n")
    print("| network | columns per unknown | draw | accuracy | agreement | seconds |")
    print("|---|---|---|---|---|---|", flush=True)
    for name, recipe in _STUDENTS:
        teacher, student = teacher_path(name), student_path(name, recipe)
        for number in _COLUMNS:
            for draw in range(2):
                order = np.random.default_rng(draw).permutation(len(train.images))
                samples = normalise(train.images[order[:_SAMPLES]])
                # The least is lowered too, or it would hide the difference in narrow blocks.
                least = min(number * 200, column_sampling._LEAST_COLUMNS) if number < 20 else None
                with (
                    mock.patch.object(column_sampling, "_COLUMNS_PER_UNKNOWN", number),
                    mock.patch.object(
                        column_sampling, "_LEAST_COLUMNS", least or column_sampling._LEAST_COLUMNS
                    ),
                ):
                    began = time.perf_counter()
                    options = FitOptions(RunOptions(("cpu",)), adapter, targets="kept")
                    model = fit(teacher, student, samples, options).model
                    seconds = time.perf_counter() - began
                others = order[-_EVALUATION:]
                accuracy, agreement = _judge(
                    teacher, model, Split(train.images[others], train.labels[others])
                )
                label = "all" if number == _ALL else number
                print(
                    f"| {name}-{recipe} | {label} | {draw} | {accuracy:.2%} | {agreement:.2%} | "
                    f"{seconds:.1f} |",
                    flush=True,
                )


def _judge(teacher: ModelSource, model: onnx.ModelProto, split: Split) -> tuple[float, float]:
    """Return accuracy, and how often both networks answer alike."""
    images = normalise(split.images)
    answers = [_answers(load_model(source), images) for source in (teacher, model)]
    return float(np.mean(answers[1] == split.labels)), float(np.mean(answers[0] == answers[1]))


def _answers(model: onnx.ModelProto, images: NDArray[np.float32]) -> NDArray[np.intp]:
    runtime = open_runtime(["cpu"])
    session = runtime.session(model)
    name, output = model.graph.input[0].name, model.graph.output[0].name
    found = []
    for start in range(0, len(images), _BATCH):
        feeds = upload({name: images[start : start + _BATCH]}, runtime.device)
        result = run(session, feeds, [output], runtime.device)[output]
        found.append(download(result).argmax(axis=1))
    return np.concatenate(found)


if __name__ == "__main__":
    main()
