"""Tensors hold as many bytes as their type and their shape come to, or are refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fskd_onnx.errors import ModelError
from fskd_onnx.serialization.tensor_check import check_tensors, stated_range

TYPES = [
    number
    for name, number in TensorProto.DataType.items()
    if name not in ("UNDEFINED", "STRING") and number in helper.get_all_tensor_dtypes()
]


@pytest.mark.parametrize("data_type", TYPES, ids=TensorProto.DataType.Name)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 5)], ids=str)
def test_what_onnx_writes_passes(data_type: int, shape: tuple[int, ...]) -> None:
    values = np.zeros(shape, np.float32).astype(helper.tensor_dtype_to_np_dtype(data_type))
    tensor = numpy_helper.from_array(values, "t")
    check_tensors([tensor])
    if tensor.HasField("raw_data"):
        tensor.raw_data += b"\0"
        with pytest.raises(ValueError, match=r"bytes of 't', and \w+ of shape .* takes"):
            check_tensors([tensor])


def test_a_part_of_a_tensor_is_refused() -> None:
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "t")
    tensor.segment.begin, tensor.segment.end = 0, 3
    with pytest.raises(ValueError, match="the tensor 't' is a segment of another one"):
        check_tensors([tensor])


def external(**entries: object) -> onnx.TensorProto:
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[3])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


@pytest.mark.parametrize(
    ("entries", "expected"),
    [({}, (0, 12)), ({"offset": 4}, (4, 12)), ({"offset": "", "length": 12}, (0, 12))],
)
def test_without_a_length_a_tensor_is_as_long_as_it_has_to_be(
    entries: dict[str, object], expected: tuple[int, int]
) -> None:
    assert stated_range(external(**entries), "a.onnx", "a.bin", 99) == expected


def test_what_is_no_place_in_a_file_is_refused() -> None:
    for wrong in ({"offset": -1}, {"offset": 1.5}, {"offset": "0x9"}, {"length": 10**30}):
        with pytest.raises(ValueError, match="no number of bytes"):
            stated_range(external(**wrong), "a.onnx", "a.bin", 99)
    with pytest.raises(ValueError, match=r"13 bytes of 'a.bin' are said to be 't'"):
        stated_range(external(length=13), "a.onnx", "a.bin", 99)
    with pytest.raises(ModelError, match=r"a.bin: is shorter .* 't' of a.onnx ends at 100"):
        stated_range(external(offset=88), "a.onnx", "a.bin", 99)
