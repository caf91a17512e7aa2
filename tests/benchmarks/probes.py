"""What a method does, seen on small networks: the key of its entries in the table of accuracy.

Fits (and the paper's algorithm) are run on the demo's networks, with a few samples, where every
fold is judged in turn, and with more, where one part is held out; those of decomposed students on
one of the demo's teacher. What is kept of each: a digest of
the fitted file, the held-out error of its output, and family, ridge and error of each block. So a
change of the code that alters no fit changes no key, one that rounds otherwise changes nothing but
digests, and one that alters fits is seen; `tests.benchmarks.cells.same_outcome` compares. Errors
below `EXACT`, where the ridge is drawn from rounding, count as none.

Training on few samples would round its way to other numbers on any other processor. Its key is the
text of its code without comments, docstrings and imports, the channels that it is given, and its
settings; and so is that of fine-tuning, without channels, and that of adapters by gradient steps.
That of gradient steps behind a fit is such a text beside what the fit does.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image

from fskd_onnx import FitOptions, FitReport, compare, fit
from fskd_onnx.gradient import gradient_steps, orthogonal_steps, targets, trainable
from fskd_onnx.pipeline import adapter_steps, gradient_setup, refinement
from fskd_onnx.samples import fresh
from models import train
from models.build import DEMO
from models.data import normalise
from tests.benchmarks import gradient
from tests.benchmarks.cells import Outcome
from tests.benchmarks.methods import FITS, kept_channels
from tests.benchmarks.paper import paper_fit
from tests.students import decomposed, is_spatial, separable

EXACT = 1e-9
"""Relative errors of blocks below it are rounding: the epsilon of float32, squared, is 1e-14."""

WITHIN = 5e-4
"""Errors that differ by less, relative, are the same. With other kernels of BLAS (those for
processors without AVX2) all files of `PROBES` get other bytes, and errors move by 7e-7. On another
processor they moved by 2e-4 where channels are chosen, since two choices are next to equally good.
A fit that differs in anything but rounding, a fold drawn otherwise, moves them by 1e-3 and more."""

WITHIN_PAPER = 5e-3
"""The same for the paper's algorithm, whose least squares in float32 have no ridge: on that
processor errors moved by 1.4e-3."""

_OF_STEPS = (
    gradient_steps,
    orthogonal_steps,
    targets,
    trainable,
    fresh,
    gradient_setup,
    refinement,
)
_OF_ADAPTERS = (gradient_steps, targets, trainable, gradient_setup, adapter_steps)
"""What gradient steps are made of; how operators run is no choice."""

_DIGITS = 9
_HELD_OUT = 100


class Probe(NamedTuple):
    """A small fit.

    Attributes:
        teacher: a file of the demo, without its suffix.
        student: likewise, or `SEPARABLE`.
        samples: how many of the demo's, the first ones.
    """

    teacher: str
    student: str
    samples: int


SEPARABLE = "k x 1, 1 x k"
"""The teacher, each k x k convolution of which is a k x 1 and a 1 x k one."""

PROBES = (
    Probe("vgg16_small", "vgg16_small_D", 10),
    Probe("vgg16_small", "vgg16_small_D", 60),
    Probe("teacher", "student", 60),
)
DECOMPOSED_PROBES = (Probe("teacher", SEPARABLE, 10), Probe("teacher", SEPARABLE, 60))
"""For the methods that fit, where the students of the table are decomposed ones."""


@functools.cache
def outcome(method: str, is_decomposed: bool = False) -> Outcome:
    """Give what a method does; takes seconds.

    Args:
        method: one of `tests.benchmarks.cells.METHODS`.
        is_decomposed: whether to a decomposed student.
    """
    match method:
        case "untouched":
            return {}
        case "paper":
            found = {_name(probe): _paper(probe) for probe in PROBES}
            return {"within": WITHIN_PAPER, "probes": found}
        case "gradient":
            kept = [sorted(_kept(probe).items()) for probe in PROBES]
            channels = _digest(json.dumps(kept).encode())
            settings = dataclasses.asdict(gradient.FewSample())
            return {"code": training_code(), "channels": channels, "settings": _plain(settings)}
        case "fine-tune" | "fine-tune-10" | "distil-10":
            how = gradient.FINE_TUNINGS[method]
            settings = dataclasses.asdict(how.recipe) | ({"taught": True} if how.taught else {})
            return {"code": training_code(), "settings": _plain(settings)}
        case "sgd":
            text = "".join(code_of(_source(module.__file__)) for module in _OF_ADAPTERS)
            return {"code": _digest(text.encode())}
        case "refine" | "refine-1000":
            # The steps start from what ``auto`` comes to, and round their way to other numbers.
            text = "".join(code_of(_source(module.__file__)) for module in _OF_STEPS)
            steps = {"code": _digest(text.encode()), "steps": FITS[method].refine}
            return outcome("auto", is_decomposed) | steps
        case _:
            probes = DECOMPOSED_PROBES if is_decomposed else PROBES
            found = {_name(probe): _fit(probe, FITS[method]) for probe in probes}
            return {"within": WITHIN, "probes": found}


def _name(probe: Probe) -> str:
    return f"{probe.student}, {probe.samples} samples"


def _fit(probe: Probe, options: FitOptions) -> Outcome:
    teacher = onnx.load(DEMO / f"{probe.teacher}.onnx")
    if probe.student == SEPARABLE:
        student, _ = decomposed(teacher, separable, is_spatial)
    else:
        student = onnx.load(DEMO / f"{probe.student}.onnx")
    run = dataclasses.replace(options.run, providers=("cpu",))
    samples = normalise(_images()[: probe.samples])
    result = fit(teacher, student, samples, dataclasses.replace(options, run=run))
    return {"sha256": _sha(result.model), "numbers": numbers(result.report)}


def numbers(report: FitReport) -> list[object]:
    """Give the held-out error of the output, then what each block became.

    What it was, and what that is called, is no part of what a fit comes to.
    """
    blocks = [
        [block.student, "exact"]
        if block.error_after is not None and block.error_after < EXACT
        else [block.student, block.adapter, block.ridge, _rounded(block.error_after)]
        for block in report.blocks
    ]
    return [_rounded(report.after.relative_mse), *blocks]


def _paper(probe: Probe) -> Outcome:
    teacher, student = (DEMO / f"{name}.onnx" for name in probe[:2])
    fitted = paper_fit(teacher, student, normalise(_images()[: probe.samples]))
    found = compare(teacher, fitted, normalise(_images()[-_HELD_OUT:]))
    return {"sha256": _sha(fitted), "numbers": [_rounded(found.agreement.relative_mse)]}


def _kept(probe: Probe) -> Mapping[str, tuple[int, ...]]:
    return kept_channels(*(DEMO / f"{name}.onnx" for name in probe[:2]))


@functools.cache
def _images() -> NDArray[np.uint8]:
    files = sorted((DEMO / "samples").iterdir())
    return np.stack([np.asarray(Image.open(file), np.uint8) for file in files])


def training_code() -> str:
    """Give a digest of the code of training."""
    modules = (gradient, train)
    texts = [code_of(_source(module.__file__)) for module in modules]
    return _digest("".join(texts).encode())


def code_of(source: str) -> str:
    """Give what a module does: its syntax tree without docstrings, comments and imports."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            body[:] = [statement for statement in body if not _is_idle(statement)]
    return ast.dump(tree)


def _is_idle(node: ast.AST) -> bool:
    text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return text or isinstance(node, ast.Import | ast.ImportFrom)


def _source(file: str | None) -> str:
    return Path(str(file)).read_text(encoding="utf-8")


def _plain(settings: Mapping[str, object]) -> object:
    """Give settings as JSON reads them."""
    return json.loads(json.dumps(settings))


def _rounded(error: float | None) -> float | None:
    """Keep the digits that are compared, and some."""
    return None if error is None else float(f"{error:.{_DIGITS}g}")


def _sha(model: onnx.ModelProto) -> str:
    return _digest(model.SerializeToString(deterministic=True))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
