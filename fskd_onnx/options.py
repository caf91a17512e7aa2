"""What a user may choose, by the names of the command line."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

from fskd_onnx.errors import MissingNormalizationError, OptionError, PreprocessError
from fskd_onnx.option_checks import (
    check_groups,
    check_integer,
    check_name,
    check_names,
    check_path,
    check_type,
    is_number,
)

Layout: TypeAlias = Literal["NCHW", "NHWC"]
ChannelOrder: TypeAlias = Literal["RGB", "BGR"]

CHANNEL_COUNTS = (1, 3)
"""Channels of an image: grayscale or colour."""

FOLDERS = "folders"
"""In place of a file of groups: the subfolders of the samples are the groups."""

AUTO_PROVIDERS = ("auto",)
"""Execution providers unless told: CUDA where it works, else the CPU."""


# Of a side of an image.
_MOST_PIXELS = 2**16


@dataclass(frozen=True)
class Normalization:
    """All constants of ``(pixel * scale - mean) / std``.

    Attributes:
        mean: one value, or one per channel in the model's channel order; scaled pixels.
        std: likewise.
        scale: factor on the pixels of 0..255, before ``mean`` and ``std``.
        channel_order: order of the colour channels that the model takes.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float
    channel_order: ChannelOrder

    @property
    def leaves_pixels(self) -> bool:
        """Return whether a pixel comes out as it went in."""
        return self.scale == 1 and set(self.mean) == {0} and set(self.std) == {1}


@dataclass(frozen=True)
class Preprocess:
    """How images become tensors; what is None comes from the preset, the model or a default.

    Attributes:
        preset: a name of `PRESETS`; explicit values override its constants.
        mean: one value, or one per channel in the model's channel order, in units of the scaled
            pixel; 0 without a preset.
        std: likewise; 1 without a preset.
        scale: factor on the pixels of 0..255, before ``mean`` and ``std``; 1/255 without a preset.
        layout: ``"NCHW"`` or ``"NHWC"``; None reads it off the model's input shape.
        resize: length of the shorter side (the aspect ratio stays), or (height, width).
        crop: side of the centre square, or (height, width); after ``resize``.
        channel_order: ``"RGB"``, the default without a preset, or ``"BGR"``.

    Raises:
        PreprocessError: a value is impossible (unknown preset, a standard deviation of zero, ...).
    """

    preset: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    scale: float | None = None
    layout: Layout | None = None
    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    channel_order: ChannelOrder | None = None

    def __post_init__(self) -> None:
        """Refuse impossible values at once, where the message can still name the option."""
        if self.preset is not None and (
            not isinstance(self.preset, str) or self.preset not in PRESETS
        ):
            raise PreprocessError(
                f"no preset is called {self.preset!r}; there are {_preset_list()}"
            )
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is None:
                continue
            if not isinstance(values, tuple | list):
                raise PreprocessError(
                    f"{name} must be a tuple of numbers such as (0.5,), not {values!r}"
                )
            if len(values) not in CHANNEL_COUNTS:
                raise PreprocessError(
                    f"{name} has {len(values)} values; give one value or one per channel (3)"
                )
            if not all(map(is_number, values)):
                raise PreprocessError(f"{name} must be finite numbers, not {values}")
        if self.std is not None and min(self.std) <= 0:
            raise PreprocessError(f"std must be positive, not {self.std}")
        if self.scale is not None and not (is_number(self.scale) and self.scale > 0):
            raise PreprocessError(f"scale must be a positive number, not {self.scale}")
        for name, allowed in (("layout", Layout), ("channel_order", ChannelOrder)):
            value = getattr(self, name)
            if value is not None and value not in get_args(allowed):
                choices = " or ".join(get_args(allowed))
                raise PreprocessError(f"{name} must be {choices}, not {value!r}")
        for name in ("resize", "crop"):
            value = getattr(self, name)
            if value is None:
                continue
            sides = value if isinstance(value, tuple) else (value, value)
            if len(sides) != 2 or not all(
                isinstance(side, int) and not isinstance(side, bool) for side in sides
            ):
                raise PreprocessError(
                    f"{name} must be a number of pixels or (height, width), not {value!r}"
                )
            if min(sides) < 1:
                raise PreprocessError(f"{name} must be at least 1 pixel, not {value}")
            if max(sides) > _MOST_PIXELS:
                raise PreprocessError(f"{name} must be at most {_MOST_PIXELS} pixels, not {value}")

    def resolve(self, name: str = "the samples") -> Normalization:
        """Return the constants: those given, else the preset's, else the defaults.

        Args:
            name: what to call the images in an error.

        Raises:
            MissingNormalizationError: neither a preset nor any of mean, std and scale is given.
        """
        if self.preset is not None:
            base = PRESETS[self.preset]
        elif self.mean is None and self.std is None and self.scale is None:
            raise MissingNormalizationError(
                f"{name}: nothing says how the model was trained to see images; "
                f"give --preprocess with one of {_preset_list()}, or --mean, --std and --scale"
            )
        else:
            base = PRESETS["unit"]
        return Normalization(
            mean=base.mean if self.mean is None else self.mean,
            std=base.std if self.std is None else self.std,
            scale=base.scale if self.scale is None else self.scale,
            channel_order=self.channel_order or base.channel_order,
        )


PRESETS: Mapping[str, Normalization] = MappingProxyType(
    {
        # torchvision, MXNet Gluon, timm: most of the model zoo.
        "imagenet": Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1 / 255, "RGB"),
        # Means are in BGR order; the zoo's GoogleNet, Inception v1, AlexNet and others.
        "caffe": Normalization((103.939, 116.779, 123.68), (1.0,), 1.0, "BGR"),
        # -1..1: Inception v3, TensorFlow's MobileNets, EfficientNet-Lite.
        "inception": Normalization((0.5,), (0.5,), 1 / 255, "RGB"),
        "raw": Normalization((0.0,), (1.0,), 1.0, "RGB"),
        "unit": Normalization((0.0,), (1.0,), 1 / 255, "RGB"),
        "fashion-mnist": Normalization((0.2860,), (0.3530,), 1 / 255, "RGB"),
    }
)
"""Normalisations by name, those of the ONNX model zoo first."""


def _preset_list() -> str:
    return ", ".join(PRESETS)


class AdapterName(StrEnum):
    """Families of adapters: the paper's 1x1, whole kernels, or what held-out error prefers.

    Of a decomposed block, ``KERNEL`` fits the last node, ``FACTORS`` all nodes; elsewhere they are
    the same.
    """

    AUTO = "auto"
    POINTWISE = "pointwise"
    KERNEL = "kernel"
    FACTORS = "factors"


class TargetsName(StrEnum):
    """Which teacher channels a narrower block aims at: kept, chosen anew, or the better of both."""

    AUTO = "auto"
    KEPT = "kept"
    SELECT = "select"


MOVE_NAMES = ("flip", "shift", "crop", "rotate")
"""Ways to move image samples, see ``fskd_onnx.samples.augment``."""


class OptimizerName(StrEnum):
    """How adapters are found: "bcd", in closed form, block by block; "sgd", by gradient steps."""

    BCD = "bcd"
    SGD = "sgd"


class SolverName(StrEnum):
    """Where the small systems are solved: on the CPU, or by PyTorch, on the GPU if it has one."""

    NUMPY = "numpy"
    TORCH = "torch"


@dataclass(frozen=True)
class RunOptions:
    """How samples are read and models are run, for every command.

    Attributes:
        providers: execution providers in order, or `AUTO_PROVIDERS`.
        max_samples: use at most this many samples, drawn with ``seed``; None uses all.
        batch_size: samples per run; None chooses by the size of a sample.
        seed: everything random comes from it.
        preprocess: how pixels become tensors.
        memory_limit: bytes of samples, columns and activations that a fit keeps in memory between
            blocks; what is past it goes to temporary files. None keeps everything in memory.
        groups: which samples belong together (crops of one photo, frames of one video), so that
            they are fitted on or held out together: the group of each sample of the source, names
            or integers; a file of these; or "folders", where the subfolders of the samples are the
            groups. None lets a fit find samples that show the same.
        samples_list: a text file that names the samples of a folder to read, one per line.

    Raises:
        OptionError: a value is of a wrong type or impossible.
    """

    providers: tuple[str, ...] = AUTO_PROVIDERS
    max_samples: int | None = None
    batch_size: int | None = None
    seed: int = 0
    preprocess: Preprocess = field(default_factory=Preprocess)
    memory_limit: int | None = None
    groups: str | Sequence[str | int] | None = None
    samples_list: str | None = None

    def __post_init__(self) -> None:
        """Refuse impossible values; let groups be a tuple where they are listed."""
        check_names(self.providers, "providers", "cpu")
        if not self.providers:
            raise OptionError("providers must name at least one, such as ('cpu',)")
        for name in ("max_samples", "batch_size"):
            if getattr(self, name) is not None:
                check_integer(getattr(self, name), name, 1)
        check_integer(self.seed, "seed", 0)
        check_type(self.preprocess, "preprocess", Preprocess)
        if self.memory_limit is not None:
            check_integer(self.memory_limit, "memory_limit", 0)
        if self.samples_list is not None:
            check_path(self.samples_list, "samples_list")
            object.__setattr__(self, "samples_list", os.fspath(self.samples_list))
        if isinstance(self.groups, str | os.PathLike):
            check_path(self.groups, "groups")
            object.__setattr__(self, "groups", os.fspath(self.groups))
        elif self.groups is not None:
            object.__setattr__(self, "groups", check_groups(self.groups, "groups"))


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
        augment: ways to move image samples, see ``fskd_onnx.samples.augment.MOVES``; none by
            default.
        augment_copies: moved copies of each sample, where ``augment`` names a way to move them.
        optimizer: "bcd", the closed form, block by block; or "sgd", the paper's other way, all
            1x1 adapters at once by gradient steps, which needs PyTorch.
        solver: where the small systems are solved: "numpy", or "torch", which uses the GPU where
            there is one.
        map: file of block and channel pairs that override what matching would find, whole or in
            part, see ``fskd_onnx.matching.map_file``.
        refine: gradient steps from the fitted student, on the same samples, see
            ``fskd_onnx.gradient``; 0 makes none.

    Raises:
        OptionError: a name is not one of `AdapterName`, `TargetsName`, `OptimizerName`,
            `SolverName` or `MOVE_NAMES`, a value is of a wrong type or impossible, or two values
            exclude each other.
    """

    run: RunOptions = field(default_factory=RunOptions)
    adapter: str = AdapterName.AUTO
    targets: str = TargetsName.AUTO
    augment: tuple[str, ...] = ()
    augment_copies: int = 8
    solver: str = SolverName.NUMPY
    map: str | None = None
    refine: int = 0
    optimizer: str = OptimizerName.BCD

    @property
    def needs_torch(self) -> bool:
        """Whether gradient steps are made."""
        return self.refine > 0 or self.optimizer == OptimizerName.SGD

    def __post_init__(self) -> None:
        """Refuse unknown names and impossible values."""
        check_type(self.run, "run", RunOptions)
        check_name(self.adapter, "adapter", AdapterName)
        check_name(self.targets, "targets", TargetsName)
        check_name(self.solver, "solver", SolverName)
        check_name(self.optimizer, "optimizer", OptimizerName)
        if self.optimizer == OptimizerName.SGD:
            if self.adapter not in (AdapterName.AUTO, AdapterName.POINTWISE):
                raise OptionError(
                    f"optimizer sgd fits pointwise adapters, not {self.adapter}; leave one out"
                )
            if self.targets == TargetsName.SELECT:
                raise OptionError(
                    "optimizer sgd fits pointwise adapters, which cannot aim at channels chosen "
                    "anew; choose targets kept"
                )
            # The only ones that it has, whatever the closed form would have chosen from.
            object.__setattr__(self, "adapter", AdapterName.POINTWISE.value)
            object.__setattr__(self, "targets", TargetsName.KEPT.value)
        check_names(self.augment, "augment", MOVE_NAMES[0], MOVE_NAMES)
        check_integer(self.augment_copies, "augment_copies", 1)
        check_integer(self.refine, "refine", 0)
        if self.map is not None:
            check_path(self.map, "map")
            object.__setattr__(self, "map", os.fspath(self.map))
