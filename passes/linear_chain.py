"""A chain of linear nodes in the place of one: what the passes that factorize have in common.

The last node of the chain is the node itself with other weights, so its name, its output, its bias
and all readers stay. In front of it come nodes without a bias. Each of them strides, dilates and
pads along its own axes as the node did, and sees one position along the others::

    x ─▶ node ─▶ y        x ─▶ node/factor1 ─▶ ... ─▶ node ─▶ y

That is the composed kernel exactly, for zeros around what a node without a bias writes are what it
makes of zeros around its input; ``auto_pad`` is a rule along each axis and goes with it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import onnx_graphsurgeon as gs
import scipy.linalg
from numpy.typing import NDArray

from fskd_onnx.passes.analysis import constants
from fskd_onnx.passes.analysis.factorizable import (
    Form,
    LinearShape,
    Link,
    Rank,
    full_rank,
    links,
    why_not,
)
from fskd_onnx.passes.analysis.linear import Linear, find_linear
from fskd_onnx.passes.analysis.linear_operators import LINEAR_OPERATORS
from fskd_onnx.passes.analysis.nodes import all_nodes, index_of
from fskd_onnx.passes.analysis.refusals import Refusal
from fskd_onnx.passes.base import Pass
from fskd_onnx.passes.edit import remove
from fskd_onnx.passes.errors import PostconditionError, PreconditionError

Array = NDArray[np.floating[Any]]

_EXPLICIT = "NOTSET"


class Factorize(Pass):
    """Put a chain in the place of each of some linear nodes. This changes the function.

    A subclass has a form and says how a kernel is divided. A second run is refused: the node that
    has the name by then is the last one of its chain.

    Attributes:
        form: what nodes become.
    """

    form: ClassVar[Form]

    @classmethod
    @abstractmethod
    def of(cls, ranks: Mapping[str, Rank]) -> Self:
        """Make the pass for ranks as they are in all forms."""

    @property
    @abstractmethod
    def chosen(self) -> Mapping[str, Rank]:
        """The rank of each node, by the node's name (its output's, where it has none)."""

    @staticmethod
    @abstractmethod
    def split(kernel: Array, *rank: int) -> tuple[Array, ...]:
        """Divide a kernel.

        Args:
            kernel: (n, c, taps along each axis).
            rank: as of ``factorizable.Rank``.

        Returns:
            The matrices of the chain, each (groups, n, p), in the type of the kernel.
        """

    def requires(self, graph: gs.Graph) -> None:
        """Check that each named node can be such a chain, at its rank."""
        views = {view.name: view for view in find_linear(graph)}
        for name, rank in self.chosen.items():
            view = views.get(name)
            if view is None:
                msg = f"the graph has no linear node '{name}' to factorize"
                raise PreconditionError(msg)
            reason = view.reason if isinstance(view, Refusal) else why_not(view, self.form)
            if reason or isinstance(view, Refusal):
                msg = f"'{name}' cannot become a chain ({self.form}): {reason}"
                raise PreconditionError(msg)
            full = full_rank(self.form, LinearShape.of(view))
            fits = len(rank) == len(full) and all(
                0 < r < f for r, f in zip(rank, full, strict=True)
            )
            if not fits:
                given, most = _by(rank), _by([f - 1 for f in full])
                msg = f"'{name}' cannot have a rank of {given}: {self.form} takes 1 to {most}"
                raise PreconditionError(msg)

    def apply(self, graph: gs.Graph) -> list[str]:
        """Rewrite in place; return one note per node."""
        notes, taken = [], _names(graph)
        for linear in self._linears(graph):
            rank = self.chosen[linear.name]
            shape = LinearShape.of(linear)
            kernel = linear.matrix.reshape(shape.outputs, shape.inputs, *shape.kernel)
            matrices = self.split(kernel, *rank)
            _put_chain(graph, linear, links(self.form, shape, rank), matrices, taken)
            notes.append(f"'{linear.name}' factorized: {self.form} of rank {_by(rank)}")
        return notes

    def ensures(self, graph: gs.Graph) -> None:
        """Check that all weights that were written are finite in the type that stores them."""
        writers = {id(v.output): v for v in find_linear(graph) if isinstance(v, Linear)}
        for linear in self._linears(graph):
            factor = linear
            for _ in links(self.form, LinearShape.of(linear), self.chosen[linear.name])[1:]:
                factor = writers[id(factor.input)]
                if not (np.isfinite(factor.native).all() and np.isfinite(linear.native).all()):
                    msg = f"the factors of '{linear.name}' are not finite in {linear.dtype}"
                    raise PostconditionError(msg)

    def _linears(self, graph: gs.Graph) -> list[Linear]:
        views = find_linear(graph)
        return [v for v in views if isinstance(v, Linear) and v.name in self.chosen]


@dataclass(frozen=True)
class FactorizeByRank(Factorize):
    """A form whose rank is one number.

    Attributes:
        ranks: channels between the two nodes of the chain, by the node's name.
    """

    ranks: Mapping[str, int]

    @classmethod
    def of(cls, ranks: Mapping[str, Rank]) -> Self:
        """See ``Factorize``."""
        return cls({name: rank for name, (rank,) in ranks.items()})

    @property
    def chosen(self) -> Mapping[str, Rank]:
        """See ``Factorize``."""
        return {name: (rank,) for name, rank in self.ranks.items()}


def _put_chain(
    graph: gs.Graph,
    linear: Linear,
    chain: Sequence[Link],
    matrices: Sequence[Array],
    taken: set[str],
) -> None:
    """Put a chain in the place of a node.

    Args:
        graph: the graph of the node.
        linear: the node; nothing else reads its weights. The view is that of the last node then.
        chain: the nodes, in the order of data; the last one has the outputs of ``linear``.
        matrices: (groups, n, p) of each, cast once to the type that stores the node's weights.
        taken: names that nodes and tensors have, those of new ones come to it.
    """
    node, source, old = linear.node, linear.input, linear.node.inputs[1]
    last = len(chain) - 1
    for number, (link, matrix) in enumerate(zip(chain, matrices, strict=True)):
        attributes = _attributes(node.attrs, link) if linear.is_convolution else {}
        if number == last:
            kept = node.attrs if not linear.is_convolution else {}
            node.attrs = {**kept, **attributes}
            if linear.operator.weight_factor in node.attrs:
                node.attrs[linear.operator.weight_factor] = 1.0
            made = node
        else:
            suffix = f"/factor{number + 1}"
            output = gs.Variable(_unused(taken, linear.output.name + suffix), linear.dtype)
            name = _unused(taken, linear.name + suffix)
            made = gs.Node(linear.operator.adapter, name, attributes, [source, old], [output])
            graph.nodes.insert(index_of(graph, node), made)
        stored = LINEAR_OPERATORS[made.op].stored(made, matrix, link.kernel)
        made.inputs[0] = source
        made.inputs[1] = _parameter(graph, old, stored, made, taken)
        source = made.outputs[0]
    cast = constants.cast_of(old)
    if cast is not None and not old.outputs:
        remove(graph, cast)


def low_rank(matrix: Array, rank: int) -> tuple[Array, Array]:
    """Return the best factors of a rank, by singular values, divided at the root of each.

    They come from the eigenvectors of the smaller Gram matrix, several times as fast. What is lost
    by that are singular values that are below rounding to the largest one's square.

    Args:
        matrix: (m, k).
        rank: r.

    Returns:
        (m, r) and (r, k), the largest singular value first.
    """
    if matrix.shape[0] > matrix.shape[1]:
        right, left = low_rank(matrix.T, rank)
        return left.T, right.T
    basis = leading_vectors(matrix, rank)
    projected = basis.T @ matrix
    values = np.linalg.norm(projected, axis=1)
    root = np.sqrt(np.where(values > 0, values, 1.0))
    return basis * root, projected / root[:, np.newaxis]


def leading_vectors(matrix: Array, rank: int) -> Array:
    """Return the left singular vectors of the largest singular values, (m, r), largest first."""
    if not rank <= matrix.shape[1] < len(matrix):
        return leading_eigenvectors(matrix @ matrix.T, rank)
    # The narrow side is a smaller problem. A singular value of zero has no direction there; QR
    # gives it one beside the others.
    images: Array = np.linalg.qr(matrix @ leading_eigenvectors(matrix.T @ matrix, rank))[0]
    return images


def leading_eigenvectors(gram: Array, rank: int) -> Array:
    """Return the eigenvectors of the largest eigenvalues, (m, r), largest first."""
    size = len(gram)
    _, vectors = scipy.linalg.eigh(
        gram, subset_by_index=[size - rank, size - 1], check_finite=False
    )
    found: Array = vectors[:, ::-1]
    return found


def _by(rank: Sequence[int]) -> str:
    return " x ".join(map(str, rank))


def _attributes(attrs: Mapping[str, Any], link: Link) -> dict[str, Any]:
    """Return the attributes of a convolution that moves along some axes as another does."""
    rank = len(link.kernel)
    own = [axis in link.axes for axis in range(rank)]
    strides, dilations = (
        [int(step) if mine else 1 for step, mine in zip(attrs.get(name) or ones, own, strict=True)]
        for name, ones in (("strides", [1] * rank), ("dilations", [1] * rank))
    )
    auto = attrs.get("auto_pad", _EXPLICIT)
    padding: dict[str, Any] = {"auto_pad": auto}
    if auto == _EXPLICIT or not link.axes:
        pads = attrs.get("pads") or [0] * 2 * rank
        padding = {"pads": [int(p) if mine else 0 for p, mine in zip(pads, own * 2, strict=True)]}
    return {
        "group": link.groups,
        "kernel_shape": list(link.kernel),
        "strides": strides,
        "dilations": dilations,
        **padding,
    }


def _parameter(
    graph: gs.Graph, like: gs.Tensor, values: Array, reader: gs.Node, taken: set[str]
) -> gs.Tensor:
    """Return a tensor of constant values that is stored as another is, behind a Cast if that is.

    Args:
        graph: the graph.
        like: what a node reads as its weight.
        values: the values.
        reader: what is to read it.
        taken: see ``_put_chain``.
    """
    constant, cast = constants.parameter(like), constants.cast_of(like)
    assert constant is not None  # else `find_linear` had not listed the node
    name, kind = f"{reader.outputs[0].name}/weight", constants.element_type(constant)
    made = constants.make(_unused(taken, name), values, kind)
    if cast is None:
        return made
    read = gs.Variable(_unused(taken, f"{name}/cast"), like.dtype)
    node = gs.Node("Cast", _unused(taken, read.name), dict(cast.attrs), [made], [read])
    graph.nodes.insert(index_of(graph, reader), node)
    return read


def _names(graph: gs.Graph) -> set[str]:
    """Return the names of all nodes and tensors of a graph and its bodies."""
    found = {tensor.name for tensor in (*graph.inputs, *graph.outputs)}
    for node in all_nodes(graph.nodes):
        found |= {node.name, *(tensor.name for tensor in (*node.inputs, *node.outputs))}
    return found


def _unused(taken: set[str], name: str) -> str:
    """Return a name, or one made from it, that is not taken; now it is."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name
