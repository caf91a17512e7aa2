"""Mutations of files: of bytes, and of what the bytes of some formats mean."""

from __future__ import annotations

import ast
import io
import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from random import Random
from typing import Any

import onnx
from google.protobuf.message_factory import GetMessageClass

Case = Mapping[str, bytes]
"""Files that are read together, by name."""

_INTEGERS = [0, 1, -1, 2, 3, 4, 6, 7, 100, 255, 256, 65535]
_INTEGERS += [sign * 2**power for power in (16, 31, 32, 40, 62) for sign in (1, -1)]
_INTEGERS += [2**31 - 1, 2**63 - 1, -(2**63)]
_FLOATS = [0.0, 1.0, -1.0, 1e38, -1e38, 1e-38, 1e300, math.nan, math.inf, -math.inf]
_STRINGS = ["", "x", "a\nb", "\x1b[31m", "\u202e", "../x", "/etc/passwd", "x" * 5000, "Conv", "N"]
_TOKENS = [
    b"\n",
    b"\r",
    b"\0",
    b",",
    b"-",
    b".",
    b'"',
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"nan",
    b"1e999",
]
_TOKENS += [b"\xe2\x80\xa8", b"\x1b[31m", b"9" * 30, b"{", b"[" * 2000]
_TYPES = ["<f4", ">f4", "<f8", "<f2", "|u1", "<i8", "<U3", "|S3", "|O", "|V4", "<c8", "<M8[s]", "?"]
_CHUNKS = [b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"acTL", b"fcTL", b"iCCP", b"zTXt", b"gAMA"]


def mutate(case: Case, donors: Sequence[Case], rng: Random) -> dict[str, bytes]:
    """Return a case with some mutations of one of its files, parts of others among them."""
    name = rng.choice(sorted(case))
    data, suffix = case[name], PurePath(name).suffix
    others = [d for donor in rng.choices(donors, k=3) for n, d in donor.items() if n == name]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        aware = _AWARE.get(suffix)
        changed = None
        if aware is not None and rng.random() < 0.8:
            try:
                changed = aware(data, rng.choice(others or [data]), rng)
            # What was mutated before may be anything but its format.
            except Exception:
                changed = None
        data = _bytes(data, rng.choice(others or [data]), rng) if changed is None else changed
    return {**case, name: data}


def _bytes(data: bytes, other: bytes, rng: Random) -> bytes:
    """Mutate bytes of no known meaning."""
    start = rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.choice((1, 1, 2, 4, 8, 64, len(data))))
    kind = rng.randrange(9)
    if kind == 0 and data:  # one bit
        at = min(start, len(data) - 1)
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if kind == 1:
        return data[:start]
    if kind == 2:
        return data[:start] + data[end:]
    if kind == 3:
        return data[:end] + data[start:]
    if kind == 4:
        return data[:start] + rng.randbytes(end - start) + data[end:]
    if kind == 5:  # a number
        form = rng.choice("bBhHiIqQ")
        order, size = rng.choice("<>"), struct.calcsize(form)
        number = rng.choice(_INTEGERS) % 256**size
        return data[:start] + struct.pack(order + form.upper(), number) + data[start + size :]
    if kind == 6:
        return data[:start] + rng.choice(_TOKENS) + data[rng.choice((start, end)) :]
    if kind == 7:  # a number in text
        found = list(re.finditer(rb"-?[0-9]+", data[:10_000]))
        if found:
            match = rng.choice(found)
            number = rng.choice(_INTEGERS)
            return data[: match.start()] + str(number).encode() + data[match.end() :]
    at = rng.randrange(len(other) + 1)
    return data[:start] + other[at : at + rng.choice((4, 64, len(other)))] + data[end:]


def _protobuf(kind: type[Any]) -> Callable[[bytes, bytes, Random], bytes]:
    def mutated(data: bytes, other: bytes, rng: Random) -> bytes:
        message, donor = kind.FromString(data), kind.FromString(other)
        messages = list(_messages(message))
        target = rng.choice(messages)
        present = [field for field, _ in target.ListFields()]
        field = rng.choice(present if present and rng.random() < 0.8 else target.DESCRIPTOR.fields)
        if field.is_repeated:
            _mutate_list(getattr(target, field.name), field, message, donor, rng)
        elif rng.random() < 0.2:
            target.ClearField(field.name)
        elif field.message_type is None:
            setattr(target, field.name, _scalar(field, message, rng))
        else:
            getattr(target, field.name).CopyFrom(_like(field, donor, rng))
        return bytes(message.SerializeToString())

    return mutated


def _messages(message: Any) -> Iterator[Any]:
    """Yield a message and all in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                yield from _messages(inner)


def _mutate_list(values: Any, field: Any, message: Any, donor: Any, rng: Random) -> None:
    kind = rng.randrange(5)
    scalar = field.message_type is None
    if kind == 0 and values:
        del values[rng.randrange(len(values))]
    elif kind == 1 and values:
        at = rng.randrange(len(values))
        values.extend([values[at]])
    elif kind == 2 and values and scalar:
        values[rng.randrange(len(values))] = _scalar(field, message, rng)
    elif kind == 2 and len(values) > 1:
        copies = [type(values[0]).FromString(value.SerializeToString()) for value in values]
        rng.shuffle(copies)
        del values[:]
        values.extend(copies)
    elif kind == 3 and rng.random() < 0.3:
        del values[:]
    else:
        values.extend([_scalar(field, message, rng) if scalar else _like(field, donor, rng)])


def _like(field: Any, donor: Any, rng: Random) -> Any:
    """Return a message of a field's type out of another one; an empty one where there is none."""
    found = [m for m in _messages(donor) if m.DESCRIPTOR is field.message_type]
    return rng.choice(found) if found else GetMessageClass(field.message_type)()


def _scalar(field: Any, message: Any, rng: Random) -> Any:
    """Return an extreme value, or a text that stands elsewhere in a message."""
    if field.cpp_type == field.CPPTYPE_STRING:
        text = rng.choice(_STRINGS)
        texts = [
            text
            for inner in _messages(message)
            for other, value in inner.ListFields()
            if other.type == other.TYPE_STRING
            for text in (value if other.is_repeated else [value])
        ]
        if texts and rng.random() < 0.6:
            text = rng.choice(texts)
        return text.encode() if field.type == field.TYPE_BYTES else text
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice(_FLOATS)
    if field.cpp_type == field.CPPTYPE_ENUM:
        return rng.randrange(30)
    bits = 32 if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32) else 64
    signed = field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_INT64)
    number = rng.choice(_INTEGERS) % 2**bits
    return number - 2**bits if signed and number >= 2 ** (bits - 1) else number


def _npy(data: bytes, other: bytes, rng: Random) -> bytes:
    """Mutate the header of an array, its length kept right."""
    size = struct.unpack("<H", data[8:10])[0]
    header = ast.literal_eval(data[10 : 10 + size].decode("latin1"))
    key = rng.choice(["descr", "shape", "shape", "fortran_order", "values"])
    if key == "descr":
        header[key] = rng.choice([*_TYPES, [("a", rng.choice(_TYPES)), ("b", "<f4", (2,))]])
    elif key == "shape":
        shape = list(header[key]) + [rng.choice(_INTEGERS)] * rng.randrange(2)
        if shape:
            shape[rng.randrange(len(shape))] = rng.choice(_INTEGERS)
        header[key] = tuple(shape[: rng.choice((0, 1, 9, 9, 9))])
    elif key == "fortran_order":
        header[key] = not header[key]
    values = data[10 + size :]
    values = _bytes(values, other, rng) if key == "values" else values
    text = repr(header).encode("latin1")
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + values


def _npz(data: bytes, other: bytes, rng: Random) -> bytes:
    """Mutate the members of an archive, their checksums kept right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(members))
    kind = rng.randrange(6)
    if kind == 0:
        del members[name]
    elif kind == 1:
        members[rng.choice(["labels.npy", "x.npy", "groups.npy", "y", "../x.npy"])] = members[name]
    elif kind == 2:
        members[name] = _bytes(members[name], other, rng)
    else:
        members[name] = _npy(members[name], other, rng)
    stream = io.BytesIO()
    with zipfile.ZipFile(
        stream, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    ) as new:
        for key, value in members.items():
            new.writestr(zipfile.ZipInfo(key), value)
    return stream.getvalue()


def _png(data: bytes, other: bytes, rng: Random) -> bytes:
    """Mutate the chunks of a PNG, their checksums kept right."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        chunks.append([kind, data[at + 8 : at + 8 + size]])
        at += 12 + size
    if not data.startswith(b"\x89PNG") or not chunks:
        return _bytes(data, other, rng)
    index = rng.randrange(len(chunks))
    kind, content = chunks[index]
    what = rng.randrange(6)
    if what == 0:
        del chunks[index]
    elif what == 1:
        chunks.insert(index, [rng.choice(_CHUNKS), _bytes(content, other, rng)])
    elif what == 2 and kind == b"IDAT":
        chunks[index][1] = zlib.compress(_bytes(zlib.decompress(content), other, rng))
    else:
        chunks[index][1] = _bytes(content, other, rng)
    parts = (
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks
    )
    return data[:8] + b"".join(parts)


def _json(data: bytes, other: bytes, rng: Random) -> bytes:
    """Mutate a value somewhere in a JSON document."""
    document = json.loads(data)
    holders = list(_holders(document))
    if not holders:
        return _bytes(data, other, rng)
    holder = rng.choice(holders)
    key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    kind = rng.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.insert(key, holder[key])
    elif kind == 2:
        source = rng.choice(holders)
        holder[key] = json.loads(json.dumps(source))
    else:
        holder[key] = rng.choice([*_INTEGERS, *_FLOATS, *_STRINGS, None, True, [], {}, "\ud800"])
    return json.dumps(document).encode()


def _holders(value: Any) -> Iterator[Any]:
    """Yield the objects and lists of a document that are not empty."""
    if isinstance(value, (dict, list)) and value:
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _holders(inner)


_AWARE: Mapping[str, Callable[[bytes, bytes, Random], bytes]] = {
    ".onnx": _protobuf(onnx.ModelProto),
    ".pb": _protobuf(onnx.TensorProto),
    ".npy": _npy,
    ".npz": _npz,
    ".png": _png,
    ".json": _json,
}
"""Mutations that know a format, by suffix; they raise anything over what is not of the format."""
