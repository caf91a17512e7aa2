"""Choose the teacher channels that a narrower student carries, instead of taking those it kept.

With adapters that refit whole kernels, a student is only a shape: any subset of the teacher's
channels can be its target, and every reader is refitted to it. The best subset is the one from
which all of the teacher's channels, as their readers see them, are best reconstructed linearly. For
readers L of a channel space with centred Gram matrices R of what they read and weights M, H = M M',
the greedy choice picks the channel of the largest gain and eliminates it, until the student's width
is reached::

    gain(j) = sum over L of  R_j' H R_j / R_jj / tr(H R)        R := R - R_j R_j' / R_jj

(pivoted Cholesky elimination; R_j is column j of R). The student then starts from the teacher's
weights,
sliced to the chosen channels, and is fitted like any other: no channel has to be matched.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from fskd_onnx.linalg.backend import Array
from fskd_onnx.linalg.moments import Moments
from fskd_onnx.linalg.ridge import is_sparse
from fskd_onnx.matching.channels import Channels
from fskd_onnx.passes.analysis.affine import AffineMap
from fskd_onnx.passes.analysis.coupled_channels import CoupledChannels, find_coupled_channels
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.propagation import is_depthwise
from fskd_onnx.passes.analysis.segments import Segment
from fskd_onnx.passes.extract_segment import extract
from fskd_onnx.results import Evidence, Matching
from fskd_onnx.runtime.column_sampling import ColumnSampling, Gatherer, batch_offsets
from fskd_onnx.runtime.providers import Runtime
from fskd_onnx.runtime.session_run import run
from fskd_onnx.runtime.tensor_store import upload
from fskd_onnx.samples.batches import Batch
from fskd_onnx.samples.reader import SampleReader

# Second moments of a few hundred channels are known well enough from this many samples and columns.
_SAMPLES = 256
_COLUMNS_PER_CHANNEL = 20
_LEAST_COLUMNS = 4096


@dataclass(frozen=True)
class Selection:
    """A student as a shape: new targets for its blocks, and weights to start from.

    Attributes:
        matching: with the chosen channels.
        weights: the teacher's, sliced to the chosen channels, by the name of the student's node.
    """

    matching: Matching
    weights: dict[str, AffineMap]


def select_targets(
    student: gs.Graph,
    teacher: gs.Graph,
    matching: Matching,
    runtime: Runtime,
    samples: SampleReader,
    batches: Sequence[Batch],
) -> Selection | None:
    """Choose the channels of every space that is free to carry any.

    Args:
        student: the compressed network, canonical.
        teacher: the original network, canonical.
        matching: the blocks' pairs; where a space is not free, its channels stay as they were kept.
        runtime: where to run the teacher.
        samples: for the statistics of the teacher's channels.
        batches: of the samples that may be used.

    Returns:
        None where there is nothing to choose.
    """
    blocks = _pair_up(student, teacher, matching)
    spaces = find_coupled_channels(student, {name: block.student for name, block in blocks.items()})
    extents = _measure(spaces, blocks)
    readers = [block for block in blocks.values() if not is_depthwise(block.student)]
    read = {space for block in readers for space in spaces.layout(block.student.input.name) or ()}
    wanted = {
        space: extent
        for space, extent in extents.items()
        if space in read and spaces.free(space) and extent.student < extent.teacher
    }
    if not wanted:
        return None
    readers = [
        block
        for block in readers
        if set(spaces.layout(block.student.input.name) or ()) & set(wanted)
    ]
    grams = _grams(
        teacher, {b.teacher.input.name: b.teacher for b in readers}, runtime, samples, batches
    )
    chosen = {}
    for space, extent in wanted.items():
        evidence = [
            _evidence(block, spaces, extents, space, grams[block.teacher.input.name])
            for block in readers
            if space in (spaces.layout(block.student.input.name) or ())
        ]
        chosen[space] = choose_channels(evidence, extent.student)
    return _reshape(blocks, spaces, extents, chosen, matching)


def choose_channels(evidence: Sequence[tuple[Array, Array]], width: int) -> Channels:
    """Choose the channels that reconstruct all others best, as their readers see them.

    Args:
        evidence: R, the centred Gram matrix, and H = M M' of each reader, (channels, channels).
        width: how many to choose.

    Returns:
        (width,) channels, ascending.
    """
    residuals = [gram.copy() for gram, _ in evidence]
    # seen = H R, kept up to date along with R, makes every pick quadratic instead of cubic.
    seen = [weight @ gram for gram, weight in evidence]
    scales = [1.0 / max(float(np.trace(part)), np.finfo(float).tiny) for part in seen]
    floors = [1e-10 * max(float(np.diag(gram).max()), np.finfo(float).tiny) for gram, _ in evidence]
    left = np.ones(len(residuals[0]), dtype=bool)
    for _ in range(width):
        gains = np.zeros(len(left))
        for residual, part, scale, floor in zip(residuals, seen, scales, floors, strict=True):
            pivots = np.diag(residual)
            energy = np.einsum("ij,ij->j", residual, part)
            gains += scale * np.where(pivots > floor, energy / np.maximum(pivots, floor), 0.0)
        pick = int(np.argmax(np.where(left, gains, -np.inf)))
        left[pick] = False
        for residual, part, floor in zip(residuals, seen, floors, strict=True):
            pivot = residual[pick, pick]
            if pivot > floor:
                column = residual[:, pick].copy()
                part -= np.outer(part[:, pick].copy(), column / pivot)
                residual -= np.outer(column, column / pivot)
    return np.flatnonzero(~left)


@dataclass(frozen=True)
class _Block:
    """A linear node of the student with its teacher's."""

    student: Linear
    teacher: Linear


@dataclass(frozen=True)
class _Extent:
    """Number of channels of a space, in the student and in the teacher."""

    student: int
    teacher: int


def _pair_up(student: gs.Graph, teacher: gs.Graph, matching: Matching) -> dict[str, _Block]:
    mine = {view.name: view for view in find_linear(student) if isinstance(view, Linear)}
    theirs = {view.output.name: view for view in find_linear(teacher) if isinstance(view, Linear)}
    return {
        pair.student: _Block(mine[pair.student], theirs[str(pair.teacher)])
        for pair in matching.usable
    }


def _measure(spaces: CoupledChannels, blocks: Mapping[str, _Block]) -> dict[int, _Extent]:
    """Return the extent of every space; fix those that the two networks do not agree on."""
    found: defaultdict[int, set[_Extent]] = defaultdict(set)
    for block in blocks.values():
        layout = spaces.layout(block.student.output.name)
        if layout is not None and len(layout) == 1:
            found[layout[0]].add(_Extent(block.student.width, block.teacher.width))
    extents = {space: max(options, key=lambda e: e.teacher) for space, options in found.items()}
    for block in blocks.values():
        shapes = {(b.op, b.groups > 1, b.kernel_shape) for b in (block.student, block.teacher)}
        extent = found.get(_only(spaces, block.student.output.name), ())
        # The teacher's weights would fill the zeros of a sparse kernel.
        if len(extent) != 1 or len(shapes) != 1 or is_sparse(block.student.native):
            spaces.fix(block.student.output.name)
            spaces.fix(block.student.input.name)
        elif not is_depthwise(block.student) and _repeat(block, spaces, extents) is None:
            spaces.fix(block.student.input.name)
    return extents


def _only(spaces: CoupledChannels, tensor: str) -> int:
    layout = spaces.layout(tensor)
    return layout[0] if layout is not None and len(layout) == 1 else -1


def _repeat(block: _Block, spaces: CoupledChannels, extents: Mapping[int, _Extent]) -> int | None:
    """Return how many inputs of a block each channel of its source gives (flattened: several)."""
    layout = spaces.layout(block.student.input.name)
    if layout is None or any(space not in extents for space in layout):
        return None
    have = [_inputs(block.student), _inputs(block.teacher)]
    widths = [
        sum(extents[space].student for space in layout),
        sum(extents[space].teacher for space in layout),
    ]
    repeats = {divmod(inputs, width) for inputs, width in zip(have, widths, strict=True)}
    repeat, rest = repeats.pop()
    return None if repeats or rest else repeat


def _inputs(linear: Linear) -> int:
    return linear.shape[2] // math.prod(linear.kernel_shape)


def _grams(
    teacher: gs.Graph,
    readers: Mapping[str, Linear],
    runtime: Runtime,
    samples: SampleReader,
    batches: Sequence[Batch],
) -> dict[str, Array]:
    """Run the teacher once over some samples; return the centred Gram matrix of each tensor."""
    inputs = tuple(tensor.name for tensor in teacher.inputs)
    computed = tuple(name for name in readers if name not in inputs)
    used = batch_offsets(_first_batches(batches, _SAMPLES))
    gather = Gatherer(runtime)
    sums: dict[str, Moments] = {}
    session = None
    for place in used:
        feeds = upload(samples.take(place.batch.samples), runtime.device)
        if session is None:
            types = {
                name: onnx.helper.make_tensor_type_proto(
                    value.element_type(), [None, *value.shape()[1:]]
                )
                for name, value in feeds.items()
            }
            session = runtime.session(extract(teacher, Segment(inputs, computed, ()), types))
        tensors = feeds | run(session, feeds, computed, runtime.device)
        for name, linear in readers.items():
            last, shape = linear.op == "MatMul", tensors[name].shape()
            channels, *spatial = (shape[-1], *shape[1:-1]) if last else shape[1:]
            draw = ColumnSampling(max(_COLUMNS_PER_CHANNEL * channels, _LEAST_COLUMNS), (0,))
            count, chosen = draw.choose(place, shape[0], math.prod(spatial))
            if count == 0:
                continue
            columns = gather(tensors[name], last, count, chosen[np.newaxis])[np.newaxis]
            new = Moments.of(columns, np.empty((1, 0, columns.shape[2])))
            sums[name] = sums[name] + new if name in sums else new
    return {name: moments.centered_gram[0] for name, moments in sums.items()}


def _first_batches(batches: Sequence[Batch], samples: int) -> list[Batch]:
    ends = np.cumsum([batch.count for batch in batches])
    return list(batches[: int(np.searchsorted(ends, samples)) + 1])


def _evidence(
    block: _Block, spaces: CoupledChannels, extents: Mapping[int, _Extent], space: int, gram: Array
) -> tuple[Array, Array]:
    """Return R and H of one reader, for the channels of one space."""
    layout = spaces.layout(block.student.input.name) or ()
    repeat = _repeat(block, spaces, extents) or 1
    before = sum(extents[s].teacher for s in layout[: layout.index(space)])
    width = extents[space].teacher
    part = slice(before * repeat, (before + width) * repeat)
    taps = math.prod(block.teacher.kernel_shape)
    weights = block.teacher.matrix[0].reshape(block.teacher.width, -1, taps)[:, part]
    # A flattened channel is several inputs; what is between different positions is not looked at.
    m = weights.reshape(block.teacher.width, width, repeat, taps)
    h = np.einsum("oirt,ojrt->ij", m, m, optimize=True)
    r = gram[part, part].reshape(width, repeat, width, repeat)
    return np.einsum("irjr->ij", r), h


def _reshape(
    blocks: Mapping[str, _Block],
    spaces: CoupledChannels,
    extents: Mapping[int, _Extent],
    chosen: Mapping[int, Channels],
    matching: Matching,
) -> Selection:
    """Slice the teacher's weights to the student's shape, and say so in the matching."""
    kept = {
        _only(spaces, blocks[pair.student].student.output.name): np.array(pair.channels)
        for pair in matching.usable
        if pair.channels is not None
    }
    carried = kept | dict(chosen)
    pairs, weights = [], {}
    for pair in matching.pairs:
        block = blocks.get(pair.student)
        if block is None:
            pairs.append(pair)
            continue
        space = _only(spaces, block.student.output.name)
        if space in chosen:
            channels = tuple(int(channel) for channel in chosen[space])
            pair = replace(pair, channels=channels, evidence=Evidence.SELECTED, confidence=1.0)
        pairs.append(pair)
        sliced = None
        if pair.channels is not None and not is_sparse(block.student.native):
            sliced = _slice(block, np.array(pair.channels), spaces, extents, carried)
        if sliced is not None:
            weights[pair.student] = sliced
    return Selection(Matching(tuple(pairs)), weights)


def _slice(
    block: _Block,
    outputs: Channels,
    spaces: CoupledChannels,
    extents: Mapping[int, _Extent],
    carried: Mapping[int, Channels],
) -> AffineMap | None:
    """Return the teacher's weights for some outputs and for what the student's input carries."""
    bias = block.teacher.bias[outputs]
    if is_depthwise(block.student) and is_depthwise(block.teacher):
        return AffineMap(block.teacher.matrix[outputs], bias[:, np.newaxis])
    if block.teacher.groups > 1 or block.student.groups > 1:
        return None
    taps = math.prod(block.student.kernel_shape)
    matrix = block.teacher.matrix[0].reshape(block.teacher.width, -1, taps)[outputs]
    layout = spaces.layout(block.student.input.name)
    if layout is None:
        inputs: NDArray[np.intp] = np.arange(matrix.shape[1])
    else:
        repeat = _repeat(block, spaces, extents)
        if repeat is None or any(space not in carried for space in layout):
            return None
        starts = np.cumsum([0, *(extents[space].teacher for space in layout)])
        channels = np.concatenate(
            [start + carried[space] for start, space in zip(starts, layout, strict=False)]
        )
        inputs = (channels[:, np.newaxis] * repeat + np.arange(repeat)).reshape(-1)
    if len(inputs) != _inputs(block.student):
        return None
    matrix = matrix[:, inputs].reshape(1, len(outputs), -1)
    return AffineMap(matrix, bias[np.newaxis])
