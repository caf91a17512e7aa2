"""Bytes of files of many types, as a network reads them that tells types apart.

Files are those of the standard library and of installed packages, and some that are made from
them: compressed, encoded as pictures, written as tables. A file is in one of two halves by the
digest of its path, so that what is judged comes from other files than what is fitted on.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import pickle
import sysconfig
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_ENDS, _PADDING, _READ = 1024, 256, 4096
_FILES_OF_A_TYPE = 40

_PACKAGES = ("matplotlib", "numpy", "onnx", "scipy", "torch")
_TEXTS = (".c", ".cmake", ".css", ".csv", ".h", ".html", ".js", ".md", ".proto", ".py", ".txt")
_BINARIES = (".npy", ".npz", ".pb", ".pdf", ".png", ".pyc", ".so", ".svg", ".ttf")
_SUFFIXES = {*_TEXTS, *_BINARIES}


def features(content: bytes) -> NDArray[np.int32]:
    """Return the first 1024 bytes of a file and the last ones, without white space around them.

    What a short file lacks is 256: behind its first bytes, in front of its last ones.
    """
    first, last = content[:_READ].lstrip()[:_ENDS], content[-_READ:].rstrip()[-_ENDS:]
    found = np.full(2 * _ENDS, _PADDING, np.int32)
    found[: len(first)] = np.frombuffer(first, np.uint8)
    found[len(found) - len(last) :] = np.frombuffer(last, np.uint8)
    return found


def _picture(content: bytes, kind: str) -> bytes:
    side = max(1, min(64, int(len(content) ** 0.5)))
    pixels = np.frombuffer(content.ljust(side * side, b"\0"), np.uint8)[: side * side]
    file = io.BytesIO()
    Image.fromarray(pixels.reshape(side, side)).save(file, kind)
    return file.getvalue()


def _zip(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo(f"{hashlib.sha256(content).hexdigest()[:6]}.txt"), content)
    return file.getvalue()


def _tar(content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo(f"{hashlib.sha256(content).hexdigest()[:6]}.txt")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def _words(content: bytes) -> list[list[str]]:
    text = content.decode("latin-1")
    return [line.split()[:8] for line in text.splitlines()[:200] if line.split()]


def _csv(content: bytes) -> bytes:
    file = io.StringIO()
    csv.writer(file).writerows(_words(content))
    return file.getvalue().encode()


def _json(content: bytes) -> bytes:
    return json.dumps(_words(content), indent=2).encode()


def _xml(content: bytes) -> bytes:
    rows = [
        "".join(f"<w>{''.join(filter(str.isalnum, w))}</w>" for w in r) for r in _words(content)
    ]
    lines = "\n".join(f"  <line>{row}</line>" for row in rows)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<text>\n{lines}\n</text>\n'.encode()


_MADE: Mapping[str, Callable[[bytes], bytes]] = {
    "gzip": lambda content: gzip.compress(content, mtime=0),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zlib": zlib.compress,
    "zip": _zip,
    "tar": _tar,
    "pickle": lambda content: pickle.dumps(_words(content)),
    "csv": _csv,
    "json": _json,
    "xml": _xml,
    "png": lambda content: _picture(content, "PNG"),
    "gif": lambda content: _picture(content, "GIF"),
    "bmp": lambda content: _picture(content, "BMP"),
    "jpeg": lambda content: _picture(content, "JPEG"),
    "webp": lambda content: _picture(content, "WEBP"),
}


def files(count: int, half: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """Return features of files, [count, 2048], of all types alike.

    Args:
        count: how many.
        half: 0 or 1, which files they are or are made from.
        rng: which of them, and where they begin.
    """
    by_type = _found(half)
    texts = [file for kind in _TEXTS for file in by_type.get(kind, ())]
    kinds = sorted({*by_type, *_MADE})
    rows = []
    for at in range(count):
        kind = kinds[at % len(kinds)]
        if kind in _MADE:
            content = _MADE[kind](_cut(_choice(texts, rng), rng))
        else:
            content = _choice(by_type[kind], rng)
            content = _cut(content, rng) if kind in _TEXTS else content
        rows.append(features(content))
    return np.stack(rows)


def _found(half: int) -> dict[str, list[bytes]]:
    """Return the contents of some files of one half, by suffix."""
    every = defaultdict(list)
    for root in _roots():
        for path in root.rglob("*"):
            name = f"{root.name}/{path.relative_to(root).as_posix()}"
            digest = hashlib.sha256(name.encode()).digest()
            if path.suffix in _SUFFIXES and digest[0] % 2 == half and "site-packages" not in name:
                every[path.suffix].append((digest, path))
    return {
        suffix: [path.read_bytes() for _, path in sorted(found)[:_FILES_OF_A_TYPE]]
        for suffix, found in every.items()
    }


def _roots() -> list[Path]:
    """Return the folders of the standard library and of what this project needs."""
    roots = [Path(sysconfig.get_path("stdlib"))]
    for name in _PACKAGES:
        spec = find_spec(name)
        assert spec is not None
        roots += map(Path, spec.submodule_search_locations or ())
    return roots


def _choice(contents: list[bytes], rng: np.random.Generator) -> bytes:
    return contents[int(rng.integers(len(contents)))]


def _cut(content: bytes, rng: np.random.Generator) -> bytes:
    """Return a text from a line at random in its first half; or all of it, half of the time."""
    start = content.find(b"\n", int(rng.integers(1 + len(content) // 2))) + 1
    return content[start:] if rng.random() < 0.5 else content
