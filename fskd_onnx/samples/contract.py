"""The contract of a sample format, by which samples of one more kind can be read.

A format finds its items in a source (the files of a folder, the batches of a data reader) and opens
them as parts, each of which gives some samples. To add a format, write a class as below in a module
of its own and enter an instance in ``FILE_FORMATS`` or ``MEMORY_FORMATS`` of
``fskd_onnx.samples.sources``. Error messages and the choice by suffix follow::

    class CsvFiles:
        name = "csv files"
        words = ".csv"

        def find(self, source: Path) -> list[Path]:
            return files_with_suffix(source, {".csv"})

        def open(self, items, inputs, preprocess):
            return open_array_items(items, read_csv, inputs, preprocess)

``read_csv(path, inputs)`` returns the arrays of a file by input name, the samples along the first
axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from fskd_onnx.options import Preprocess
from fskd_onnx.serialization.interface import InputSpec


class SourcePart(Protocol):
    """Samples that are opened together: an image, an array file, a batch of a data reader."""

    @property
    def count(self) -> int:
        """Return the number of samples."""

    def describe(self, index: int) -> str:
        """Return what to call one sample in an error."""

    def read(self, spec: InputSpec, index: int) -> NDArray[Any]:
        """Return one input of one sample.

        Args:
            spec: the model's input.
            index: 0 <= index < ``count``.

        Returns:
            A finite tensor of the input's type, without the axis of the samples; with all axes
            where the input is the same for all samples.

        Raises:
            SamplesError: the sample cannot be decoded or is not finite.
            PreprocessError: it is an image that does not fit the input.
        """


class SampleFormat(Protocol):
    """A kind of samples.

    Attributes:
        name: what to call several items in an error that a folder mixes formats.
        words: what to call the format in a list of all formats.
    """

    name: str
    words: str

    def find(self, source: Any) -> Sequence[Any] | None:
        """Find the items of this format in a source, without opening them.

        Args:
            source: an existing path for a format of files, else any object.

        Returns:
            The items, in the order of their samples; None where the source is no source of this
            format.
        """

    def open(
        self, items: Sequence[Any], inputs: tuple[InputSpec, ...], preprocess: Preprocess
    ) -> Sequence[SourcePart]:
        """Open items as parts, checked as far as can be without decoding them.

        Args:
            items: what `find` returned.
            inputs: the model's inputs.
            preprocess: how images become tensors.

        Raises:
            SamplesError: an item is broken or not what the model takes.
        """
