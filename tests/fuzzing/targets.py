"""What is fuzzed: valid files to begin with, and the calls that read them."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper
from PIL import Image

from fskd_onnx import FitOptions, RunOptions, fit
from fskd_onnx.compress_results import Plan
from fskd_onnx.compression.plan import plan_to_json, read_plan
from fskd_onnx.errors import SamplesError
from fskd_onnx.matching.channels import match_models
from fskd_onnx.matching.map_file import read_map
from fskd_onnx.options import Preprocess
from fskd_onnx.passes import Canonicalize
from fskd_onnx.pipeline.networks import load_networks
from fskd_onnx.reporting.json_format import matching_to_json
from fskd_onnx.samples.finding import find_listed
from fskd_onnx.samples.groups import load_groups
from fskd_onnx.samples.labels import load_labels
from fskd_onnx.samples.sources import FILE_FORMATS, load_samples
from fskd_onnx.serialization.interface import InputSpec
from tests.compression.plans import LIMITS, PLAN
from tests.forms import GROUPS
from tests.fuzzing.mutation import Case
from tests.helpers import DEMO
from tests.networks import NETWORKS

COUNT = 6
"""Number of samples, labels and groups."""


@dataclass(frozen=True)
class Target:
    """Something that reads files.

    Attributes:
        seeds: gives valid cases.
        run: reads the case whose files lie in a folder; raises what reading them raises.
        share: of the time of a run, in relation to others.
    """

    seeds: Callable[[], Iterator[Case]]
    run: Callable[[Path], object]
    share: float = 1.0


# --- models ---


def _models() -> Iterator[Case]:
    for network in NETWORKS.values():
        yield _pair(network.teacher(), network.student())
    for group, forms in GROUPS.items():
        for form in forms.values() if group != "Model zoo" else ():
            yield _pair(*form.pair())


def _pair(teacher: onnx.ModelProto, student: onnx.ModelProto) -> Case:
    case = {"teacher.onnx": teacher.SerializeToString()}
    light, values = onnx.ModelProto(), b""
    light.CopyFrom(student)
    if zlib.crc32(case["teacher.onnx"]) % 3:
        return case | {"student.onnx": student.SerializeToString()}
    for tensor in light.graph.initializer:
        data = tensor.raw_data
        if not data:
            continue
        entries = {"location": "student.data", "offset": len(values), "length": len(data)}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        values += data
    return case | {"student.onnx": light.SerializeToString(), "student.data": values}


def _read_models(folder: Path) -> None:
    teacher, student = (str(folder / f"{role}.onnx") for role in ("teacher", "student"))
    one, other = load_networks(teacher, student)
    match_models(one.graph(), other.graph())
    # A fit takes as long as all else takes for twenty cases.
    if zlib.crc32((folder / "student.onnx").read_bytes()) % 16:
        return
    rng, samples = np.random.default_rng(0), {}
    for spec in one.inputs:
        shape = [min(size or 6, 64) for size in spec.shape]
        if spec.axis is not None:
            shape[spec.axis] *= 8
        samples[spec.name] = rng.uniform(0, 5, shape).astype(spec.dtype)
    with suppress(SamplesError):  # the samples are no part of the case
        fit(teacher, student, samples, FitOptions(RunOptions(providers=("cpu",))))


# --- samples ---

_VECTOR = InputSpec("x", (None, 3), np.dtype("float32"))
_IMAGE = InputSpec("x", (None, 3, 4, 5), np.dtype("float32"))
_WHOLE = InputSpec("n", (None,), np.dtype("int64"))
_RAW = Preprocess(preset="raw")


def _samples() -> Iterator[Case]:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((COUNT, 3)).astype(np.float32)
    pixels = rng.integers(0, 256, (COUNT, 4, 5, 3), np.uint8)
    numbers = np.arange(COUNT)
    for name, array in (
        ("vector", vectors),
        ("image", pixels),
        ("image", np.moveaxis(pixels, -1, 1) / np.float32(9)),
    ):
        yield {f"{name}.npy": npy(array)}
        yield {f"{name}.npz": npz(x=array)}
        yield {f"{name}.npz": npz(x=array, labels=numbers)}
    yield {"vector.npy": npy(np.asfortranarray(vectors.astype(np.float64)))}
    yield {"two.npz": npz(x=vectors, n=numbers)}
    for arrays in ((vectors,), (vectors, numbers)):
        tensors = [numpy_helper.from_array(a).SerializeToString() for a in arrays]
        yield {f"input_{number}.pb": data for number, data in enumerate(tensors)}
    listed = onnx.TensorProto(dims=vectors.shape, data_type=1, float_data=vectors.ravel())
    yield {"input_0.pb": listed.SerializeToString()}


def _read_samples(folder: Path) -> None:
    names = sorted(entry.name for entry in folder.iterdir())
    inputs = [_IMAGE if "image" in names[0] else _VECTOR]
    if "two" in names[0] or len(names) == 2:
        inputs.append(_WHOLE)
    samples = load_samples(folder, inputs, _RAW, max_samples=COUNT)
    samples.take(np.arange(len(samples)))


# --- images ---


def _images() -> Iterator[Case]:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8))
    clear = picture.copy()
    clear.putalpha(100)
    exif = Image.Exif()
    exif[0x0112] = 6
    for image in (picture, clear, *(picture.convert(mode) for mode in ("L", "P", "1", "LA"))):
        yield {"a.png": encoded(image, "PNG")}
    yield {"a.png": encoded(picture.convert("P"), "PNG", transparency=b"\0\xff\0")}
    yield {"a.png": encoded(picture, "PNG", exif=exif)}
    yield {"a.png": encoded(picture, "PNG", save_all=True, append_images=[clear.convert("RGB")])}
    for image in (picture, picture.convert("L"), picture.convert("CMYK")):
        yield {"a.jpg": encoded(image, "JPEG", exif=exif)}
    yield {"a.jpg": encoded(picture, "JPEG", progressive=True)}
    yield {"a.jpg": encoded(picture, "MPO", save_all=True, append_images=[picture])}
    for image in (picture, *(picture.convert(mode) for mode in ("L", "P", "1"))):
        yield {"a.bmp": encoded(image, "BMP")}
    yield {"a.webp": encoded(clear, "WEBP", lossless=True, exif=exif)}
    yield {"a.webp": encoded(picture, "WEBP", save_all=True, append_images=[clear])}


def _read_images(folder: Path) -> None:
    (file,) = folder.iterdir()
    load_samples(file, [_IMAGE], Preprocess(preset="raw", resize=6, crop=(4, 5)))


# --- labels, groups, lists, maps, plans ---


def _labels() -> Iterator[Case]:
    yield {"labels.npy": npy(np.arange(COUNT))}
    yield {"labels.npz": npz(labels=np.arange(COUNT))}
    yield {"labels.npz": npz(a=np.arange(COUNT), b=np.ones((COUNT, 2)))}
    yield {"labels.txt": b"0\n1\n2\n3\n4\n5\n"}
    yield {"labels.csv": b"\xef\xbb\xbf0\r\n 1\r\n+2\r\n-3\r\n4\r\n5"}


def _groups() -> Iterator[Case]:
    names = np.array(["a", "b", "b", "c", "c", "c"])
    yield {"groups.npy": npy(np.arange(COUNT))}
    yield {"groups.npy": npy(names)}
    yield {"groups.npz": npz(groups=names)}
    yield {"groups.npz": npz(a=names, b=np.ones((COUNT, 2)))}
    yield {"groups.txt": b"a\nb\nb\nc\nc\nc\n"}
    yield {"groups.csv": "\u00e4\nb\nb\nc\nc\nc".encode()}


def _lists() -> Iterator[Case]:
    yield {"list.txt": b"0003.png\n0001.png\n"}
    yield {"list.csv": "\ufeff./0003.png\r\n0001.png".encode()}


def _read_list(folder: Path) -> object:
    return find_listed(DEMO / "samples", _only(folder), FILE_FORMATS)


@cache
def _canonical() -> tuple[onnx.ModelProto, ...]:
    network = NETWORKS["residual"]
    return tuple(Canonicalize()(model).model for model in (network.teacher(), network.student()))


def _networks() -> tuple[gs.Graph, gs.Graph]:
    one, other = map(gs.import_onnx, _canonical())
    return one, other


def _maps() -> Iterator[Case]:
    document = json.loads(matching_to_json(match_models(*_networks())))
    yield {"map.json": json.dumps(document).encode()}
    for pair in document["pairs"]:
        pair.pop("channels", None)
    yield {"map.json": json.dumps(document).encode()}
    yield {"map.json": json.dumps({"pairs": document["pairs"][:1]}).encode()}
    yield {"map.json": b'{"pairs": []}'}


def _plans() -> Iterator[Case]:
    yield {"plan.json": plan_to_json(PLAN).encode()}
    some = Plan(PLAN.teacher, PLAN.units[:2])
    yield {"plan.json": plan_to_json(some).encode()}
    yield {"plan.json": b'{"units": []}'}


def _read_plan(folder: Path) -> None:
    read_plan(folder / "plan.json", PLAN.teacher, LIMITS)


def _read_map(folder: Path) -> None:
    graphs = _networks()
    match_models(*graphs, read_map(folder / "map.json", *graphs))


def npy(array: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(**arrays: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def encoded(image: Image.Image, format_: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


TARGETS: Mapping[str, Target] = {
    "models": Target(_models, _read_models, share=8.0),
    "samples": Target(_samples, _read_samples, share=2.0),
    "images": Target(_images, _read_images, share=2.0),
    "labels": Target(_labels, lambda folder: load_labels(_only(folder), COUNT)),
    "lists": Target(_lists, _read_list),
    "groups": Target(_groups, lambda folder: load_groups(str(_only(folder)), COUNT)),
    "maps": Target(_maps, _read_map, share=2.0),
    "plans": Target(_plans, _read_plan),
}
"""All that is fuzzed, by name."""


def _only(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file
