"""What a user may choose; the same names as on the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from fskd_onnx.preprocess import Preprocess


class AdapterName(StrEnum):
    """Families of adapters: the paper's 1x1, whole kernels, or what held-out error prefers."""

    AUTO = "auto"
    POINTWISE = "pointwise"
    KERNEL = "kernel"


class TargetsName(StrEnum):
    """Which teacher channels a narrower block aims at: kept, chosen anew, or the better of both."""

    AUTO = "auto"
    KEPT = "kept"
    SELECT = "select"


class SolverName(StrEnum):
    """Where the small systems are solved: on the CPU, or by PyTorch, on the GPU if it has one."""

    NUMPY = "numpy"
    TORCH = "torch"


@dataclass(frozen=True)
class RunOptions:
    """How samples are read and models are run, for every command.

    Attributes:
        providers: execution providers in order, or ``("auto",)``: CUDA where it works, else CPU.
        max_samples: use at most this many samples, drawn with ``seed``; ``None`` uses all.
        batch_size: samples per run; ``None`` lets the engine choose.
        seed: everything random comes from it.
        preprocess: how pixels become tensors.
        memory_limit: bytes of samples, columns and activations that a fit keeps in memory between
            blocks; what is past it goes to temporary files. ``None`` keeps everything in memory.
    """

    providers: tuple[str, ...] = ("auto",)
    max_samples: int | None = None
    batch_size: int | None = None
    seed: int = 0
    preprocess: Preprocess = field(default_factory=Preprocess)
    memory_limit: int | None = None


@dataclass(frozen=True)
class FitOptions:
    """How a student is fitted.

    Attributes:
        run: how samples are read and models are run.
        adapter: family of adapters: "pointwise" (the paper's 1x1), "kernel", or "auto", which
            decides per block by held-out error.
        targets: which teacher channels a narrower block aims at: "kept" (those that the student was
            pruned to), "select" (those that reconstruct all best), or "auto", which decides by the
            held-out error of the network's output.
        augment: ways to move image samples, see ``fskd_onnx.augment.MOVES``; none by default.
        augment_copies: moved copies of each sample, where there is a way to move them.
        solver: where the small systems are solved: "numpy", or "torch", which uses the GPU where
            there is one.
        map: file of block and channel pairs that override what matching would find, whole or in
            part, see ``fskd_onnx.block_map``.
    """

    run: RunOptions = field(default_factory=RunOptions)
    adapter: str = AdapterName.AUTO
    targets: str = TargetsName.AUTO
    augment: tuple[str, ...] = ()
    augment_copies: int = 8
    solver: str = SolverName.NUMPY
    map: str | None = None

    def __post_init__(self) -> None:
        """Refuse what is not on the lists; a plain string of a list will do."""
        AdapterName(self.adapter)
        TargetsName(self.targets)
        SolverName(self.solver)
