"""Figures of one output of two networks: cosine, and those of scores of classes.

An output holds scores of classes if it is a row of numbers per sample that may be ranked. No graph
says so, but some outputs say that they are something else: rows of unit length are embeddings, and
so are, by their names, boxes, states and features. These have no class that is ranked first.

Scores are turned into probabilities by the softmax, unless they are probabilities: not negative and
of sum one. The divergence is KL(teacher || student) = sum p log(p / q), in nats, over the samples'
mean.
"""

from __future__ import annotations

import re

import numpy as np
import scipy.special
from numpy.typing import NDArray

from fskd_onnx.compare_results import OutputAgreement

Floats = NDArray[np.float64]

_MOST_RANKED = 5
# Words in the names of outputs that hold no scores of classes.
_NO_SCORES = re.compile(
    r"(?<![a-z])(b?box(es)?|embed(ding)?s?|features?|hidden|states?|landmarks?|keypoints?|coords?"
    r"|offsets?|pose|pooler)(?![a-z])",
    re.IGNORECASE,
)
_UNIT = 1e-3  # up to which rows are of unit length, and sums of probabilities one
_LEAST = 1e-12  # probabilities below count as this


def are_scores(values: NDArray[np.generic], name: str = "") -> bool:
    """Return whether an output, (samples, ...), is a row of scores of classes per sample.

    Args:
        values: of the output.
        name: of the output.
    """
    if max(values.shape[1:], default=1) != values[0].size or values[0].size < 2:
        return False
    if values.dtype.kind not in "fiu" or _NO_SCORES.search(name):
        return False
    return not _are_units(values.reshape(len(values), -1))


def _are_units(rows: NDArray[np.generic]) -> bool:
    """Whether rows, (samples, numbers), are embeddings of unit length; one-hot rows are none."""
    exact = rows.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.sum(exact**2, axis=1)
    one_hot = (np.count_nonzero(exact, axis=1) == 1).all()
    return bool((np.abs(lengths - 1) < _UNIT).all() and not one_hot)


def compare_output(
    name: str,
    own_name: str,
    teacher: NDArray[np.generic],
    student: NDArray[np.generic],
    error: float,
) -> OutputAgreement:
    """Return how close one output is to the teacher's.

    Args:
        name: of the output in the teacher.
        own_name: in the student.
        teacher: its values, (samples, ...).
        student: the same of the student.
        error: relative, see ``fskd_onnx.reporting.agreement``.
    """
    of_teacher, of_student = (x.reshape(len(x), -1).astype(np.float64) for x in (teacher, student))
    with np.errstate(invalid="ignore", over="ignore"):
        cosine = mean_cosine(of_teacher, of_student)
        top1 = top5 = divergence = None
        if are_scores(teacher, name):
            best = of_teacher.argmax(axis=1)
            top1 = float(np.mean(best == of_student.argmax(axis=1)))
            if of_teacher.shape[1] > _MOST_RANKED:
                top5 = float(np.mean(ranks(of_student, best) < _MOST_RANKED))
            divergence = _divergence(of_teacher, of_student)
    return OutputAgreement(name, own_name, error, cosine, top1, top5, divergence)


def ranks(scores: Floats, classes: NDArray[np.integer]) -> NDArray[np.intp]:
    """Return how many scores of a sample are greater than that of its class, (samples,).

    Args:
        scores: (samples, classes).
        classes: one for each sample.
    """
    own = np.take_along_axis(scores, classes[:, np.newaxis].astype(np.intp), axis=1)
    found: NDArray[np.intp] = np.sum(scores > own, axis=1)
    return found


def mean_cosine(teacher: Floats, student: Floats) -> float | None:
    """Return the mean cosine of outputs, (samples, numbers); None where one is zero for all."""
    lengths = np.linalg.norm(teacher, axis=1) * np.linalg.norm(student, axis=1)
    known = lengths > 0
    if not known.any():
        return None
    return float(np.mean(np.sum(teacher * student, axis=1)[known] / lengths[known]))


def _divergence(teacher: Floats, student: Floats) -> float:
    """Return the mean KL(teacher || student) of scores, (samples, classes)."""
    both = teacher, student
    if all(_are_probabilities(values) for values in both):
        log_p, log_q = (np.log(np.maximum(values, _LEAST)) for values in both)
    else:
        log_p, log_q = (scipy.special.log_softmax(values, axis=1) for values in both)
    return float(np.mean(np.sum(np.exp(log_p) * (log_p - log_q), axis=1)))


def _are_probabilities(values: Floats) -> bool:
    return bool(values.min() >= 0 and (np.abs(values.sum(axis=1) - 1) < _UNIT).all())
