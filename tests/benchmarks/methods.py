"""The methods of the table of accuracy, on a teacher, a student and samples.

===========  =====================================================================================
untouched    the pruned student as it is
paper        the published algorithm, `tests.benchmarks.paper`
pointwise    the paper's 1x1 adapters as this package fits them (``--adapter pointwise``)
kernel       kernel adapters aimed at the channels that the student kept; of a decomposed block, its
             last node alone
factors      of a decomposed block all nodes (``--adapter factors``)
select       kernel adapters aimed at channels chosen anew
auto         the package as it comes, no option given
augment      the same with moved copies of the samples (``--augment flip,shift``)
sgd          the paper's other way: all 1x1 adapters at once, by gradient (``--optimizer sgd``)
refine       the same with 200 gradient steps behind it (``--refine 200``)
refine-1000  the same with 1,000 of them
gradient     training on the same samples, `tests.benchmarks.gradient`
fine-tune    training on all 60,000 labels for three epochs, `tests.benchmarks.gradient`
fine-tune-10 the same for ten epochs
distil-10    the same with the teacher's scores beside the labels
===========  =====================================================================================
"""

from __future__ import annotations

import functools
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from fskd_onnx import FitOptions, FskdError, fit, match
from models import zoo
from models.build import compressed, student_path, teacher_path
from models.data import Split, draw_samples, load, normalise
from models.export import INPUT
from models.networks import Network
from models.train import accuracy
from tests.benchmarks.cells import Entry, Place, Student
from tests.benchmarks.gradient import FINE_TUNINGS, fine_tune, train_few
from tests.benchmarks.paper import paper_fit

FITS = {
    "pointwise": FitOptions(adapter="pointwise"),
    "kernel": FitOptions(adapter="kernel", targets="kept"),
    "factors": FitOptions(adapter="factors"),
    "select": FitOptions(adapter="kernel", targets="select"),
    "auto": FitOptions(),
    "augment": FitOptions(augment=("flip", "shift")),
    "sgd": FitOptions(optimizer="sgd"),
    "refine": FitOptions(refine=200),
    "refine-1000": FitOptions(refine=1000),
}
"""What the package is called with."""

_EVALUATION_BATCH = 500


def measure(place: Place, draw: int) -> Entry:
    """Recover a student and judge it on the test images.

    Args:
        place: which entry of the table.
        draw: which draw of the samples.

    Returns:
        An entry of this draw alone, which names neither outcome nor models.
    """
    teacher, student = teacher_path(place.student.network), student_path(*place.student)
    untouched = onnx.load(student)
    if place.method == "untouched":
        return Entry(onnx_accuracy(untouched, _data("test")))
    start = time.process_time()
    try:
        recovered = _recover(place, draw, teacher, student)
    except (FskdError, np.linalg.LinAlgError) as error:
        # Where the cache is, is of no interest to a reader of the table.
        refused = str(error).replace(f"{student.parent}/", "")
        return Entry(onnx_accuracy(untouched, _data("test")), refused=refused)
    seconds = time.process_time() - start
    if isinstance(recovered, onnx.ModelProto):
        return Entry(onnx_accuracy(recovered, _data("test")), cpu_seconds=seconds)
    return Entry(100 * accuracy(recovered, _data("test")), cpu_seconds=seconds)


def _recover(place: Place, draw: int, teacher: Path, student: Path) -> onnx.ModelProto | Network:
    if place.method in FINE_TUNINGS:
        return fine_tune(*_pair(place.student), _data("train"), FINE_TUNINGS[place.method])
    images = draw_samples(_data("train").images, place.samples, draw)
    if place.method == "gradient":
        pair = _pair(place.student)
        return train_few(*pair, kept_channels(teacher, student), images, seed=draw).network
    if place.method == "paper":
        return paper_fit(teacher, student, normalise(images))
    return fit(teacher, student, normalise(images), FITS[place.method]).model


def kept_channels(teacher: Path, student: Path) -> dict[str, tuple[int, ...]]:
    """Give the teacher's channel of each of the student's, by the module of a block output.

    Values carry the name of their module; the classifier's are the logits, which are trained on
    anyway.
    """
    pairs = match(teacher, student).usable
    return {str(pair.teacher): pair.channels or () for pair in pairs if pair.op == "Conv"}


def onnx_accuracy(model: onnx.ModelProto, data: Split) -> float:
    """Give the per cent of images whose largest logit is that of the label."""
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = [
        np.asarray(session.run(None, {INPUT: normalise(part)})[0]).argmax(1)
        for part in np.array_split(data.images, max(1, len(data.images) // _EVALUATION_BATCH))
    ]
    return 100 * float(np.mean(np.concatenate(found) == data.labels))


def teacher_accuracy(network: str) -> float:
    """Give the accuracy of a teacher on the test images, per cent."""
    return onnx_accuracy(onnx.load(teacher_path(network)), _data("test"))


@functools.cache
def _data(split: str) -> Split:
    return load(split)


@functools.cache
def _pair(student: Student) -> tuple[Network, Network]:
    teacher = zoo.teacher(student.network)
    return teacher, compressed(teacher, student.recipe)
