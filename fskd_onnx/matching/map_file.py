"""A map of blocks and channels, as ``match --json`` saves it and ``--map`` takes it back.

It may be edited, and it may be partial: blocks that it does not name are matched as usual.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx_graphsurgeon as gs

from fskd_onnx.errors import MatchError
from fskd_onnx.matching.pairing import Partner
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.printable import shortened
from fskd_onnx.results import Evidence
from fskd_onnx.serialization.input_files import open_regular

_LEFT_ALONE = "the map says so"


def read_map(
    path: str | Path,
    teacher: gs.Graph,
    student: gs.Graph,
    summed: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Partner]:
    """Read a map, and check it against the networks that it is for.

    Args:
        path: JSON with a list ``pairs``, or the report of a fit or of a compression; of each pair,
            ``student`` names a node of the student, ``teacher`` a block output of the teacher
            (null: leave the node alone), and ``channels`` the teacher's channel of each of the
            student's (null or absent: find them).
        teacher: the original network, canonical.
        student: the compressed network, canonical.
        summed: names of nodes that went into another, and which one that is; a map may leave them
            alone, and no more.

    Returns:
        The pairs, by the name of the student's node.

    Raises:
        MatchError: the file cannot be read, or names what is not there.
    """
    try:
        with open_regular(path) as stream:
            document = json.loads(stream.read().decode("utf-8"))
    except OSError as error:
        raise MatchError(f"{path}: the map cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise MatchError(f"{path}: nests its lists too deep for a map; correct it") from error
    except ValueError as error:
        what = str(error).split(";")[0]  # what follows is for those who write programs
        raise MatchError(f"{path}: is not JSON: {what}") from error
    pairs = _pairs(document)
    if pairs is None:
        raise MatchError(
            f"{path}: has no list 'pairs'; save a map with 'fskd-onnx match --json' and edit that"
        )
    check = _Check(str(path), find_views(student), find_views(teacher), _namesakes(student))
    given: dict[str, Partner] = {}
    for entry in pairs:
        if isinstance(entry, dict) and (into := summed.get(str(entry.get("student")))) is not None:
            if entry.get("teacher") is not None:
                raise MatchError(
                    f"{path}: pairs '{entry['student']}', which is summed with '{into}', where the "
                    f"teacher has one node; pair '{into}' with that"
                )
            continue
        partner = check(entry)
        if partner.student in given:
            raise MatchError(f"{path}: pairs the node '{partner.student}' twice; keep one of them")
        given[partner.student] = partner
    return given


def _pairs(document: Any) -> list[Any] | None:
    """Return the pairs of a map, or those of the report of a fit; None where there are none."""
    if not isinstance(document, dict):
        return None
    if isinstance(found := document.get("pairs"), list):
        return found
    report = fit if isinstance(fit := document.get("fit"), dict) else document
    blocks = report.get("blocks")
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        return None
    # A report has no channels where they are not known.
    return [{**block, "channels": block.get("channels") or None} for block in blocks]


def find_views(graph: gs.Graph) -> dict[str, Linear | None]:
    """Return the linear nodes of a graph by name; None for those that cannot be fitted."""
    return {view.name: view if isinstance(view, Linear) else None for view in find_linear(graph)}


def _namesakes(graph: gs.Graph) -> dict[str, list[str]]:
    """Return the keys of the listed nodes of each name that is no key of its own."""
    found: dict[str, list[str]] = {}
    for view in find_linear(graph):
        for name in {view.node.name, *(tensor.name for tensor in view.tensors)}:
            found.setdefault(str(name), []).append(view.name)
    return found


@dataclass(frozen=True)
class _Check:
    """What an entry may name.

    Attributes:
        file: name of the map.
        student: linear nodes, by name.
        teacher: the same.
        namesakes: keys of the student's nodes that have, or write to, each name.
    """

    file: str
    student: Mapping[str, Linear | None]
    teacher: Mapping[str, Linear | None]
    namesakes: Mapping[str, list[str]]

    def __call__(self, entry: Any) -> Partner:
        """Read one entry."""
        if not isinstance(entry, dict) or not isinstance(entry.get("student"), str):
            raise MatchError(
                f"{self.file}: a pair names no node of the student ('student'): "
                f"{shortened(repr(entry))}"
            )
        name, output = entry["student"], entry.get("teacher")
        if name not in self.student and len(several := self.namesakes.get(name, [])) > 1:
            quoted = ", ".join(f"'{key}'" for key in several)
            raise MatchError(
                f"{self.file}: '{name}' names {len(several)} nodes of the student; "
                f"name one of them by {quoted}"
            )
        if name not in self.student:
            raise MatchError(
                f"{self.file}: the student has no node '{name}' with weights; it has "
                f"{_some(self.student)}"
            )
        if output is None:
            reason = entry.get("reason")
            return Partner(name, None, Evidence.MAP, 1.0, str(reason) if reason else _LEFT_ALONE)
        outputs = {view.output.name: view for view in self.teacher.values() if view is not None}
        if not isinstance(output, str) or output not in outputs:
            raise MatchError(
                f"{self.file}: pairs '{name}' with '{shortened(str(output))}', which is no block "
                f"output of the teacher; it has {_some(outputs)}"
            )
        partner = Partner(name, output, Evidence.MAP, 1.0)
        channels, view = entry.get("channels"), self.student[name]
        if channels is None or view is None:
            return partner
        kept = self._channels(name, channels, view.width, outputs[output].width)
        return replace(partner, channels=kept)

    def _channels(self, name: str, channels: Any, width: int, among: int) -> tuple[int, ...]:
        if not isinstance(channels, list) or not all(
            isinstance(channel, int) and not isinstance(channel, bool) for channel in channels
        ):
            raise MatchError(f"{self.file}: the channels of '{name}' are not a list of numbers")
        wrong = next((c for c in channels if not 0 <= c < among), None)
        if wrong is not None:
            raise MatchError(
                f"{self.file}: gives '{name}' the channel {shortened(str(wrong))} of a teacher's "
                f"block that has 0 to {among - 1}"
            )
        if len(channels) != width:
            raise MatchError(
                f"{self.file}: gives '{name}' {len(channels)} channels; it has {width}"
            )
        if len(set(channels)) != len(channels):
            twice = next(channel for channel in channels if channels.count(channel) > 1)
            raise MatchError(f"{self.file}: gives '{name}' the channel {twice} twice")
        return tuple(channels)


def _some(names: Mapping[str, object]) -> str:
    few = [f"'{name}'" for name in list(names)[:5]]
    return ", ".join(few) + (", ..." if len(names) > len(few) else "")
