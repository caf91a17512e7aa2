"""Graphs as exporters, converters and other tools write them: one small network for each form."""

from __future__ import annotations

from collections.abc import Mapping

from tests.forms.form import Form, noisy
from tests.forms.graphs import INTERFACES, QUANTIZED, SCOPES, TOPOLOGIES, zoo
from tests.forms.operators import CONVOLUTIONS, MATRICES
from tests.forms.parameters import SCALES, TYPES, VERSIONS, WEIGHTS

__all__ = ["GROUPS", "Form", "noisy", "zoo"]

GROUPS: Mapping[str, Mapping[str, Form]] = {
    "Versions": VERSIONS,
    "Where weights are kept": WEIGHTS,
    "Scales and shifts beside a linear node": SCALES,
    "Convolutions": CONVOLUTIONS,
    "Matrices": MATRICES,
    "Topologies": TOPOLOGIES,
    "Interfaces": INTERFACES,
    "Element types": TYPES,
    "Bodies, functions, other domains": SCOPES,
    "Quantized parts": QUANTIZED,
    "Model zoo": zoo(divisor=4),
}
