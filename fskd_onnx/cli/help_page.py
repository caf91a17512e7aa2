"""The help of a command: its options in groups, and a command that works as it stands."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from typer.core import TyperCommand

EXAMPLES: Mapping[str, str] = MappingProxyType(
    {
        "fit": "fskd-onnx fit teacher.onnx student.onnx photos --preprocess imagenet "
        "-o fused.onnx --report fit.html",
        "compress": "fskd-onnx compress teacher.onnx photos --preprocess imagenet "
        "--reduce macs=30% -o small.onnx",
        "match": "fskd-onnx match teacher.onnx student.onnx --json map.json",
        "compare": "fskd-onnx compare teacher.onnx fused.onnx photos --preprocess imagenet "
        "--blocks --time",
    }
)
"""For each command one that works, for who has the files that it names."""

# The group of each option, by the name of its parameter; all others are what the command is about.
_GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Samples": (
            *("max_samples", "samples_list", "labels", "groups", "augment", "augment_copies"),
            *("preprocess", "mean", "std", "scale", "layout", "resize", "crop", "channel_order"),
        ),
        "Running": ("providers", "batch_size", "seed", "memory_limit", "solver"),
        "Output": (
            *("output", "json", "report", "save_plan", "dry_run"),
            *("verbose", "quiet", "log_file", "help"),
        ),
    }
)
_GROUP_OF = {name: group for group, names in _GROUPS.items() for name in names}


class GroupedCommand(TyperCommand):
    """A command whose help shows its options in groups, and an example below."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then each group of options."""
        own = f"What to {self.name}"
        groups: dict[str, list[tuple[str, str]]] = {
            name: [] for name in ("Arguments", own, *_GROUPS)
        }
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                is_argument = parameter.param_type_name == "argument"
                group = "Arguments" if is_argument else _GROUP_OF.get(str(parameter.name), own)
                groups[group].append(record)
        for name, records in groups.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the example, on one line whatever the width: it is there to be copied."""
        formatter.write_paragraph()
        formatter.write(f"Example:\n  {EXAMPLES[str(self.name)]}\n")
