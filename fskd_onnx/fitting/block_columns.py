"""The columns of one block: patches of the student beside the teacher's targets, chunk by chunk.

A column pairs regressors x, what the student's block reads, with targets y, what the teacher's
block gives, at one position of one sample. Nothing is read from the student's block itself: its
patches are gathered from its *input* at the sampled positions. So a block never runs uncorrected.

Regressors are the patches, or coordinates of the block's outputs W p where these are enough. Where
the columns are fewer than their rows, as ten samples of an image of one pixel are, they span less
than the whole space, and a ridge leaves everything outside of the span alone. Then x are the
coordinates in an orthonormal basis of the span, and nothing is lost (``BlockColumns.in_span``).

Nodes that use the same weights share their unknowns: the columns of a block are those of all of its
uses, each gathered from its own input beside the targets of its own partner.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import scipy.linalg

from fskd_onnx.errors import MatchError
from fskd_onnx.fitting.block_sources import BlockRequest, Source, find_sources
from fskd_onnx.fitting.column_chunk import ColumnChunk, Floats
from fskd_onnx.fitting.family import BlockRegressors
from fskd_onnx.fitting.teacher_pass import TeacherPass
from fskd_onnx.linalg.backends import Array
from fskd_onnx.linalg.ridge import span
from fskd_onnx.linalg.threads import parallel_map
from fskd_onnx.runtime.gather import column_type
from fskd_onnx.runtime.segment_runner import Stage
from fskd_onnx.runtime.tensor_store import StoredTensor
from fskd_onnx.timing import StageTimer

# Products of larger chunks are no faster. Columns that fit the second are kept for the next time
# they are asked for; those of blocks with more are gathered anew each time.
_CHUNK_BYTES = 2**26
_KEPT_BYTES = 2**29


_Piece = tuple[Source, int]
"""A use of a block, and the number of a batch."""


class BlockColumns:
    """The columns of one block at the current stage of the student.

    Columns with a value that is not finite are left out.

    Attributes:
        request: what is gathered.
        regressors: the block as a map of them.
        left_out: samples with columns that were left out, as far as they were gathered.
    """

    def __init__(
        self, stage: Stage, teacher: TeacherPass, request: BlockRequest, timer: StageTimer
    ) -> None:
        """Look at the first batch.

        Args:
            stage: of the student; its stop holds the inputs of all uses, and their shortcuts.
            teacher: gives the columns of the teacher's block.
            request: what to gather.
            timer: counts the time of the first batch, and of the basis of a span, as "capture".

        Raises:
            MatchError: student and teacher differ in their positions.
        """
        self._stage = stage
        self._batches = teacher.batches
        self._gather_columns = teacher.gather
        self.request = request
        self._timer = timer
        self._chunks: list[ColumnChunk] | None = None
        self.left_out: set[int] = set()
        linear, groups = request.linear, request.linear.groups
        with timer("capture"):
            tensors = stage.tensors(0)
            first = tensors[linear.input.name]
            sources = find_sources(teacher, request, tensors)
        self._pieces: list[_Piece] = [
            (source, index)
            for fold in dict.fromkeys(batch.fold for batch in self._batches)
            for source in sources
            for index in source.columns
            if self._batches[index].fold == fold
        ]
        self._taps = np.any([source.geometry.taps_inside for source in sources], axis=0)
        taps = self._taps
        if not taps.any():
            raise MatchError("no position of its output sees a position of its input")
        inside = np.tile(taps, linear.shape[2] // len(taps))
        basis: Array | None = None
        if not inside.all():
            basis = np.tile(np.eye(len(inside))[:, inside], (groups, 1, 1))
        block_map = linear.matrix[..., inside]
        # What the patches are multiplied with as soon as they are gathered, in their precision.
        self._projection: Floats | None = None
        kind = column_type(first.element_type())
        of_outputs = not (request.needs_patches or request.across_groups)
        if request.across_groups:
            self._projection = block_map.astype(kind)
        elif of_outputs:
            block_map, coordinates = span(block_map)
            self._projection = coordinates.astype(kind)
            basis = None
        bias = linear.bias.reshape(groups, -1)
        self.regressors = BlockRegressors(
            block_map,
            bias,
            basis,
            of_outputs,
            request.keep_zeros,
            request.factors,
            request.prior,
        )
        columns = sum(source.columns[index].columns for source, index in self._pieces)
        n, m = block_map.shape[1:]
        # Groups of them, and how many in each.
        self._regressor_shape = (1, groups * n) if request.across_groups else (groups, m)
        per_column = 8 * math.prod(self._regressor_shape)
        per_column += 4 * len(request.channels) * (3 if request.residual else 1)
        self._keep = per_column * columns <= _KEPT_BYTES
        self._fewer_than_unknowns = columns < m

    def in_span(self) -> BlockColumns:
        """Return the same columns in coordinates of their span, where that are fewer.

        A map of these regressors says nothing about what the columns do not span: zeros of a kernel
        would not stay there.
        """
        if self.request.keep_zeros or not (self._fewer_than_unknowns and self._keep):
            return self
        reduced = copy.copy(self)
        with self._timer("capture"):
            chunks = list(self.chunks())
            if not chunks:
                return self
            x = np.concatenate([chunk.x for chunk in chunks], axis=2)
            # Householder reflections, so the basis is orthonormal even where columns are equal.
            bases, coordinates = zip(
                *(scipy.linalg.qr(part, mode="economic") for part in x), strict=True
            )
            basis = np.stack(bases)
            ends = np.cumsum([len(chunk) for chunk in chunks])[:-1]
            parts = np.split(np.stack(coordinates), ends, axis=2)
            reduced._chunks = [
                replace(chunk, x=part) for chunk, part in zip(chunks, parts, strict=True)
            ]
        old = self.regressors
        of_patches = None
        if not old.of_outputs:
            of_patches = basis if old.basis is None else old.basis @ basis
        reduced.regressors = replace(old, block_map=old.block_map @ basis, basis=of_patches)
        return reduced

    def chunks(self, first_fold: bool | None = None) -> Iterable[ColumnChunk]:
        """Return chunks, fold after fold.

        They are a list where they are kept, else an iterator. A fold without a finite column has
        none.

        Args:
            first_fold: whether to return those of the first fold or those of all others; None for
                all chunks.
        """
        if self._chunks is None and self._keep:
            self._chunks = list(self._gathered(self._pieces))
        if self._chunks is not None:
            chunks, fold = self._chunks, self._chunks[0].fold if self._chunks else 0
            return [c for c in chunks if first_fold is None or (c.fold == fold) == first_fold]
        if first_fold is None:
            return self._gathered(self._pieces)
        return self._some_folds(first=first_fold)

    def _some_folds(self, *, first: bool) -> Iterator[ColumnChunk]:
        """Gather the chunks of the first fold that has some, or those of all others."""
        found: int | None = None
        for fold, pieces in itertools.groupby(
            self._pieces, lambda piece: self._batches[piece[1]].fold
        ):
            for chunk in self._gathered(list(pieces)):
                found = fold if found is None else found
                if (fold == found) != first:
                    break
                yield chunk
            if first and found is not None:
                return

    def _gathered(self, pieces: list[_Piece]) -> Iterable[ColumnChunk]:
        """Gather the columns of some batches, at once where all of them may be in memory."""
        shares = self._divided(pieces)
        if not self._keep:
            return self._finite(map(self._gather, shares), shares)
        for index in dict.fromkeys(index for _, index in pieces):
            self._stage.tensors(index)  # runs what has not run yet, one batch after another
        chunks = [self._empty(share) for share in shares]
        parts = [part for pair in zip(chunks, shares, strict=True) for part in self._parts(*pair)]
        list(parallel_map(self._fill, parts))
        return list(self._finite(chunks, shares))

    def _finite(
        self, chunks: Iterable[ColumnChunk], shares: list[list[_Piece]]
    ) -> Iterator[ColumnChunk]:
        """Yield chunks without the columns that are not finite, those of no other not at all."""
        for chunk, share in zip(chunks, shares, strict=True):
            finite = chunk.finite()
            if finite is None:
                yield chunk
                continue
            ends = np.cumsum([source.columns[index].columns for source, index in share])[:-1]
            for (source, index), part in zip(share, np.split(finite, ends), strict=True):
                columns, samples = source.columns[index], self._batches[index].samples
                rows = np.flatnonzero(~part.reshape(columns.count, -1).all(axis=1))
                # Where a sample has several rows, they follow each other.
                self.left_out.update(samples[rows * len(samples) // columns.shape[0]].tolist())
            if finite.any():
                yield chunk.part(finite)

    def _divided(self, pieces: list[_Piece]) -> list[list[_Piece]]:
        """Divide batches into those whose columns are one chunk: of a use and fold, few enough."""
        per_column = 8 * math.prod(self._regressor_shape)
        shares: list[list[_Piece]] = []
        size, last = 0, (-1, -1)
        for source, index in pieces:
            current = id(source), self._batches[index].fold
            if current != last or size > _CHUNK_BYTES:
                shares.append([])
                size, last = 0, current
            shares[-1].append((source, index))
            size += per_column * source.columns[index].columns
        return shares

    def _gather(self, share: list[_Piece]) -> ColumnChunk:
        chunk = self._empty(share)
        for part in self._parts(chunk, share):
            self._fill(part)
        return chunk

    def _empty(self, share: list[_Piece]) -> ColumnChunk:
        """Allocate the columns of some batches."""
        found = [source.columns[index] for source, index in share]
        first, columns = found[0], sum(part.columns for part in found)
        groups = self._regressor_shape[0]
        shape = (groups, len(self.request.channels) // groups, columns)
        targets = np.empty(shape, column_type(first.targets.element_type))
        residual = None
        if self.request.residual and first.sums is not None:
            residual = np.empty_like(targets), np.empty_like(targets)
        return ColumnChunk(
            fold=self._batches[share[0][1]].fold,
            x=np.empty((*self._regressor_shape, columns)),
            targets=targets,
            residual=residual,
        )

    def _parts(
        self, chunk: ColumnChunk, share: list[_Piece]
    ) -> Iterator[tuple[_Piece, ColumnChunk]]:
        """Yield each batch with its part of a chunk."""
        end = 0
        for source, index in share:
            start, end = end, end + source.columns[index].columns
            yield (source, index), chunk.part(slice(start, end))

    def _fill(self, item: tuple[_Piece, ColumnChunk]) -> None:
        """Gather the columns of one batch."""
        # What is not finite is left out by ``_finite``, so no product has to warn of it.
        with np.errstate(invalid="ignore", over="ignore"):
            self._fill_part(*item)

    def _fill_part(self, place: _Piece, part: ColumnChunk) -> None:
        origin, index = place
        tensors, teacher = self._stage.tensors(index), origin.columns[index]
        linear, last = origin.linear, origin.linear.columns_last
        at, inside = origin.geometry.patches(teacher.positions)
        at, inside = at[self._taps], inside[self._taps]
        mask = None if inside.all() else inside
        source = tensors[linear.input.name], last, teacher.count, at, mask
        if self._projection is None:
            self._gather_columns(*source, out=part.x.reshape(-1, len(part)))
        else:
            patches = self._gather_columns(*source)
            patches = patches.reshape(linear.groups, -1, len(part))
            part.x[...] = (self._projection @ patches).reshape(part.x.shape)

        def align(stored: StoredTensor, out: Floats) -> None:
            value = stored.value()  # what it gives is on loan, and has to live until it is copied
            out[...] = value.numpy()[self.request.channels].reshape(out.shape)

        align(teacher.targets, part.targets)
        if part.residual is not None and teacher.sums is not None:
            sums, shortcut = part.residual
            align(teacher.sums, sums)
            name = str(origin.plan.epilogue.shortcut)
            position, out = teacher.positions[np.newaxis], shortcut.reshape(-1, len(part))
            self._gather_columns(tensors[name], last, teacher.count, position, out=out)
