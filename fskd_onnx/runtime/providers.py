"""Choose ONNX Runtime execution providers that really work, or say which library is missing."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import logging
import re
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime import OrtValue

from fskd_onnx.errors import ProviderError
from fskd_onnx.options import AUTO_PROVIDERS
from fskd_onnx.passes.run_as_inference import run_as_inference
from fskd_onnx.passes.separate_weights import Separated
from fskd_onnx.serialization import external_data

logger = logging.getLogger(__name__)

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_ON_CUDA = (_CUDA, "TensorrtExecutionProvider")  # both read tensors that lie on the device
# For sessions that run a few times and whose numbers are compared: convolutions are chosen by
# what cuDNN knows of them, where it would else run all that there are, in each session, and
# compute in float32, where it would else round their inputs to 10 bits (TF32).
_SETTINGS = {_CUDA: {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}}
_FATAL = 4
_AS_REQUESTED = 1
_ERROR = 3
_EXTERNAL_DATA = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True)
class Runtime:
    """ONNX Runtime on chosen providers.

    Attributes:
        providers: full names, in order; the CPU always stands last, for nodes no other takes.
        device: where tensors between runs are kept, as ONNX Runtime calls it.
        as_written: whether nodes run as the file has them, none merged with another: slower, and
            errors name nodes that the file has.
        as_users_run: whether sessions have the options that they have where nobody sets any, so
            that they take as long as a user's.
    """

    providers: tuple[str, ...]
    device: str
    as_written: bool = False
    as_users_run: bool = False

    @property
    def on_cpu(self) -> Runtime:
        """The same on the CPU alone."""
        return replace(self, providers=(_CPU,), device="cpu")

    def session(
        self, model: onnx.ModelProto | Separated, profile: Path | None = None
    ) -> onnxruntime.InferenceSession:
        """Make a session of a model; what it lies in, in memory, need not outlive the call.

        Dropouts run as inference, whatever mode the model states.

        Args:
            model: whole, of any size, or without its large weights.
            profile: beginning of the name of a file that the runtime writes times of nodes to; None
                for no such file.

        Raises:
            Exception: whatever the runtime raises; callers know which file it is about.
        """
        apart, folder = (
            external_data.separate_for_session(model)
            if isinstance(model, onnx.ModelProto)
            else (model, None)
        )
        run_as_inference(apart.model)
        weights = _on_loan(apart)
        options = _options() if not self.as_users_run else _basic_options()
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        if self.as_written:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_external_initializers(list(weights), list(weights.values()))
        _send_no_telemetry()
        settings = {} if self.as_users_run else _SETTINGS
        session = onnxruntime.InferenceSession(
            apart.model.SerializeToString(),
            options,
            providers=[(name, settings.get(name, {})) for name in self.providers],
        )
        if folder is not None:
            weakref.finalize(session, folder.remove)
        # The runtime has copied what it was lent. To fall back to another provider it would load
        # the model once more, when that may be gone.
        session.disable_fallback()
        return session


def _basic_options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL  # errors are raised, and said in our words
    options.add_session_config_entry(_EXTERNAL_DATA, str(external_data.ROOT))
    return options


def _options() -> onnxruntime.SessionOptions:
    options = _basic_options()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A fit makes a session per segment. With an arena each, every one of them would ask the
    # system for all of its memory anew, and that costs as much as running it.
    _share_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    return options


def _on_loan(apart: Separated) -> dict[str, OrtValue]:
    """Return the weights of a model as values that refer to the memory of its arrays."""
    return {
        tensor.name: OrtValue.ortvalue_from_numpy_with_onnx_type(
            np.ascontiguousarray(apart.weights[tensor.name]), tensor.data_type
        )
        for tensor in apart.model.graph.initializer
        if tensor.name in apart.weights
    }


@functools.cache
def _send_no_telemetry() -> None:
    """Switch off what ONNX Runtime reports about sessions to its makers, where it does."""
    onnxruntime.disable_telemetry_events()


@functools.cache
def _share_arena() -> None:
    """Register an arena on the CPU that sessions of this process may share."""
    onnxruntime.create_and_register_allocator(
        onnxruntime.OrtMemoryInfo(
            "Cpu",
            onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR,
            0,
            onnxruntime.OrtMemType.DEFAULT,
        ),
        onnxruntime.OrtArenaCfg({"arena_extend_strategy": _AS_REQUESTED}),
    )


def release_memory() -> None:
    """Give back to the system what sessions of this process have used, and do no longer."""
    if not _share_arena.cache_info().currsize:
        return
    # The arena takes this as an option of a run, of any session that shares it.
    session = onnxruntime.InferenceSession(_PROBE, _options(), providers=[_CPU])
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    session.run(None, {"x": np.zeros(1, np.float32)}, options)


def open_runtime(names: Sequence[str]) -> Runtime:
    """Resolve provider names.

    Args:
        names: short ("cuda") or full ("CUDAExecutionProvider") names in any case, in order, or
            ``AUTO_PROVIDERS``: CUDA where it really works, else the CPU.

    Raises:
        ProviderError: a named provider is unknown to the installed runtime or does not load.
    """
    if tuple(name.lower() for name in names) == AUTO_PROVIDERS:
        problem = _why_not(_CUDA)
        chosen = [_CPU] if problem else [_CUDA, _CPU]
        logger.info("running on %s", "the CPU: " + problem if problem else "CUDA")
    else:
        chosen = [_full_name(name) for name in names]
        for provider in chosen:
            if problem := _why_not(provider):
                msg = (
                    f"provider '{provider}' cannot be used: {problem}; "
                    f"install what is missing, or choose --providers cpu"
                )
                raise ProviderError(msg)
        if _CPU not in chosen:
            chosen.append(_CPU)
    return Runtime(tuple(chosen), "cuda" if chosen[0] in _ON_CUDA else "cpu")


def working_providers() -> list[str]:
    """Return the full names of the providers that the installed runtime has and that load."""
    return [p for p in onnxruntime.get_available_providers() if _why_not(p) is None]


def _full_name(name: str) -> str:
    available = onnxruntime.get_available_providers()
    for full in available:
        if name.lower() in (full.lower(), full.lower().removesuffix("executionprovider")):
            return str(full)
    short = ", ".join(full.removesuffix("ExecutionProvider").lower() for full in available)
    msg = f"provider '{name}' is not part of the installed ONNX Runtime; it has: {short}"
    raise ProviderError(msg)


def _why_not(provider: str) -> str | None:
    """Return why a provider does not load, or None where it does.

    The runtime lists providers that it was built with, and falls back to the CPU in silence when
    one does not load, so a session of one node has to be made and asked.
    """
    if provider not in onnxruntime.get_available_providers():
        return "the installed ONNX Runtime was built without it"
    if provider == _CPU:
        return None
    # The runtime prints its fallback to stdout, which is for results.
    with _quiet(), contextlib.redirect_stdout(io.StringIO()):
        if provider == _CUDA and hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        _send_no_telemetry()
        try:
            session = onnxruntime.InferenceSession(_PROBE, providers=[provider])
        except Exception as error:
            return str(error).splitlines()[0]
    if provider in session.get_providers():
        return None
    return _missing_library(provider) or "a library or a device that it needs was not found"


def _missing_library(provider: str) -> str | None:
    """Load a provider's library as the runtime does, to hear from the loader what it needs."""
    stem = provider.removesuffix("ExecutionProvider").lower()
    folder = Path(onnxruntime.__file__).parent / "capi"
    for library in folder.glob(f"*onnxruntime_providers_{stem}.*"):
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            # "libx.so.1: cannot open shared object file: No such file or directory"
            if found := re.match(r"(\S+?): cannot open", str(error)):
                return f"{found[1]} is missing"
    return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the runtime's own report of a failed load, several coloured lines, off the terminal."""
    onnxruntime.set_default_logger_severity(_FATAL)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(_ERROR)


_PROBE = onnx.parser.parse_model(
    '<ir_version: 8, opset_import: ["": 13]> probe (float[1] x) => (float[1] y) { y = Relu(x) }'
).SerializeToString()
