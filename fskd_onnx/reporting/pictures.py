"""Pictures of results as SVG that takes its colours from the page it stands in.

A picture is one or more panels below each other. It is drawn twice, for wide and for narrow
screens, since letters that shrink with a picture cannot be read on a phone.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours are drawn as these and become variables of the page, which differ in the dark.
_INK, _LINE, _BEFORE, _AFTER, _PAPER = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        _INK: "var(--soft)",
        _LINE: "var(--line)",
        _BEFORE: "var(--before)",
        _AFTER: "var(--after)",
        _PAPER: "var(--paper)",
    }
)
_STYLE: Mapping[str, object] = MappingProxyType(
    {
        "svg.fonttype": "none",  # letters stay letters, in the font of the page
        "svg.hashsalt": "fskd-onnx",  # else names in the file differ from call to call
        "font.size": 9.0,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _LINE,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.color": _LINE,
        "grid.linewidth": 0.6,
        "xtick.color": _LINE,
        "ytick.color": _LINE,
        "xtick.labelcolor": _INK,
        "ytick.labelcolor": _INK,
        "legend.frameon": False,
    }
)
_METADATA: Mapping[str, None] = MappingProxyType(
    dict.fromkeys(("Creator", "Date", "Format", "Type"))
)
_WIDE, _NARROW = 9.6, 4.4  # inches of 72 units each
# Errors below this part of the greatest are rounding: they would take most of the axis.
_LEAST_PART = 1e-5
_MOST_LINKED = 150


class Panel(Protocol):
    """A part of a picture."""

    @property
    def height(self) -> float:
        """Inches."""

    def draw(self, axes: Axes) -> None:
        """Draw it."""


@dataclass(frozen=True)
class Pairs:
    """A figure of each part of a network before and after, in network order, on a log scale.

    Attributes:
        before: one for each part; None where there is none. Where all are None, only one figure of
            each part is drawn.
        after: one for each part; None where there is none.
        what: the parts, for the axis.
        figure: what the figure is, for the axis.
    """

    before: Sequence[float | None]
    after: Sequence[float | None]
    what: str
    figure: str
    height: float = 3.0

    @property
    def floor(self) -> float | None:
        """What smaller figures are drawn at; None where there are none."""
        known = [value for value in (*self.before, *self.after) if value is not None]
        least = _LEAST_PART * max(known, default=0.0)
        return least if any(value < least for value in known) else None

    def draw(self, axes: Axes) -> None:
        """Draw a mark for each figure, and a line between the two of a part."""
        from matplotlib.ticker import MaxNLocator

        least = self.floor or 0.0
        size = 26.0 if len(self.after) <= _MOST_LINKED else 7.0
        linked = [
            (place, max(old, least), max(new, least))
            for place, (old, new) in enumerate(zip(self.before, self.after, strict=True), 1)
            if old is not None and new is not None and len(self.after) <= _MOST_LINKED
        ]
        if linked:
            places, tops, ends = zip(*linked, strict=True)
            axes.vlines(places, tops, ends, colors=_LINE, linewidths=1.2, zorder=1)
        for values, color, label, hollow in (
            (self.before, _BEFORE, "before", True),
            (self.after, _AFTER, "after", False),
        ):
            known = [(n, max(v, least)) for n, v in enumerate(values, 1) if v is not None]
            axes.scatter(
                [place for place, _ in known],
                [value for _, value in known],
                s=size,
                facecolors="none" if hollow else color,
                edgecolors=color,
                linewidths=1.3,
                label=label,
                zorder=2,
            )
        _scale(axes, (value for value in (*self.before, *self.after) if value is not None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins="auto"))
        both = enumerate(zip(self.before, self.after, strict=True), 1)
        last = max((place for place, found in both if any(map(_is_known, found))), default=1)
        axes.set_xlim(0.4, last + 0.6)
        axes.set_xlabel(self.what)
        axes.set_title(self.figure, loc="left", fontsize=9, color=_INK)
        axes.grid(axis="y")
        if any(map(_is_known, self.before)):
            axes.legend(
                loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderpad=0, handletextpad=0
            )


@dataclass(frozen=True)
class Bars:
    """Shares, one bar each, from 0 to 1 or beyond.

    Attributes:
        shares: by their labels.
        before: what some of them were before, by the same labels.
    """

    shares: Mapping[str, float]
    before: Mapping[str, float]

    @property
    def height(self) -> float:
        """Inches."""
        return (0.35 if self.before else 0.15) + 0.26 * len(self.shares)

    def draw(self, axes: Axes) -> None:
        """Draw the bars, the figure behind each, and a hollow mark for what was before."""
        labels = list(self.shares)
        values = list(self.shares.values())
        places = range(len(labels))
        axes.barh(places, [1.0] * len(labels), color=_LINE, height=0.5, alpha=0.45)
        axes.barh(places, values, color=_AFTER, height=0.5)
        for place, value in zip(places, values, strict=True):
            axes.annotate(
                f"{value:.1%}",
                (max(value, 1.0), place),
                xytext=(6, 0),
                textcoords="offset points",
                verticalalignment="center_baseline",
                annotation_clip=False,
            )
        marks = [(self.before[text], n) for n, text in enumerate(labels) if text in self.before]
        if marks:
            axes.scatter(
                [value for value, _ in marks],
                [place for _, place in marks],
                s=26,
                facecolors=_PAPER,
                edgecolors=_BEFORE,
                linewidths=1.3,
                label="before the fit",
                zorder=3,
            )
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderpad=0, handletextpad=0)
        axes.set_yticks(places, labels)
        axes.invert_yaxis()
        axes.set_xlim(0, max(1.0, *values))
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)


@dataclass(frozen=True)
class Curve:
    """The errors of single samples from the least to the greatest.

    Attributes:
        quantiles: at equal steps.
    """

    quantiles: Sequence[float]
    height: float = 2.6

    def draw(self, axes: Axes) -> None:
        """Draw the curve over the share of the samples."""
        from matplotlib.ticker import PercentFormatter

        steps = max(len(self.quantiles) - 1, 1)
        shares = [number / steps for number in range(len(self.quantiles))]
        least = _LEAST_PART * max(self.quantiles)
        _scale(axes, self.quantiles)
        axes.plot(shares, [max(value, least) for value in self.quantiles], color=_AFTER)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel("samples, from the least error to the greatest")
        axes.set_title("relative error of a sample", loc="left", fontsize=9, color=_INK)
        axes.grid(axis="y")


def draw(panels: Sequence[Panel], *, narrow: bool) -> str:
    """Return a picture as the text of an SVG element.

    Args:
        panels: from top to bottom.
        narrow: whether for narrow screens.
    """
    # It tells of fonts and folders of its own, which says nothing to a user.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    heights = [panel.height for panel in panels]
    file = io.StringIO()
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)  # type: ignore[arg-type]
        figure = Figure(figsize=(_NARROW if narrow else _WIDE, sum(heights)), layout="constrained")
        # Each by itself, so that long labels of one leave the others their width.
        parts = figure.subfigures(len(heights), squeeze=False, height_ratios=heights)
        for panel, part in zip(panels, parts[:, 0], strict=True):
            panel.draw(part.subplots())
        figure.savefig(file, format="svg", transparent=True, metadata=dict(_METADATA))
    text = file.getvalue()
    # The two pictures of a page may not have a name in common.
    names = re.compile(r'(?<= id=")|(?<=href="#)|(?<=url\(#)')
    text = names.sub("narrow-" if narrow else "wide-", text[text.index("<svg") :])
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    return text


def _is_known(value: float | None) -> bool:
    return value is not None


def _scale(axes: Axes, values: Iterable[float]) -> None:
    """Let the upright axis be logarithmic, unless all values are zero."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    if any(values):
        axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
