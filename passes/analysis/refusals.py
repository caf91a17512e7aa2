"""Nodes that hold weights and are left alone, each with the reason: nothing is skipped in silence.

A reason is half a sentence about "it", the node.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from fskd_onnx.passes.analysis import constants
from fskd_onnx.passes.analysis.linear_operators import LINEAR_OPERATORS
from fskd_onnx.passes.analysis.nodes import (
    all_nodes,
    bodies,
    has_input,
    is_dense,
    is_standard,
    is_vector,
)

_QUANTIZED = ("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul")
# They apply their weights in another way than to one patch of their input.
_RECURRENT = ("GRU", "LSTM", "RNN")
_NOT_LINEAR = ("Attention", "DeformConv", "Einsum", *_RECURRENT)


@dataclass(frozen=True)
class Refusal:
    """Why a node that has weights cannot be viewed as linear; a value, not an error.

    Attributes:
        node: the node.
        reason: half a sentence about "it".
        own_name: whether the node's name tells it from all others that are listed, see
            ``linear.find_linear``.
    """

    node: gs.Node
    reason: str
    own_name: bool = True

    @property
    def name(self) -> str:
        """Name of the node, or of its output where that is no name of its own."""
        outputs = (tensor.name for tensor in self.node.outputs if tensor.name)
        return str((self.own_name and self.node.name) or next(outputs))

    @property
    def tensors(self) -> list[gs.Tensor]:
        """What it computes."""
        return list(self.node.outputs)


def is_of_quantized(reason: str) -> bool:
    """Whether a reason is that weights are quantized; before that the network has others."""
    return reason.endswith("is quantized")


def why_not_linear(node: gs.Node, graph_outputs: Collection[int]) -> str:
    """Return why a node of a linear operator cannot be refitted, or nothing.

    Args:
        node: the node.
        graph_outputs: the outputs of its graph, by identity.
    """
    operator = LINEAR_OPERATORS[node.op]
    data, weight = node.inputs[:2]
    if isinstance(data, gs.Constant):
        return f"its input '{data.name}' is a constant"
    constant = constants.parameter(weight)
    if constant is None:
        return _why_no_parameter("weight", weight)
    if constants.computed_type(weight) not in constants.COMPUTED:
        return f"its weight '{weight.name}' is not of type float16, float32 or float64"
    if not operator.convolves and len(constant.shape) != 2:
        return f"its weight '{weight.name}' is not a matrix"
    if 0 in constant.shape:
        return f"its weight '{weight.name}' is empty"
    if data.shape is not None and len(data.shape) == 1:
        return f"its input '{data.name}' is a vector, so it has no sample axis"
    if id(weight) in graph_outputs or id(constant) in graph_outputs:
        return f"its weight '{weight.name}' is also an output of the graph"
    if node.attrs.get(operator.input_transposed_by, 0):
        reason = f"its input is transposed ({operator.input_transposed_by})"
        return f"{reason}, so it has no sample axis"
    if operator.bias_input is not None and has_input(node, operator.bias_input):
        read = node.inputs[operator.bias_input]
        bias = constants.parameter(read)
        if bias is None:
            return _why_no_parameter("bias", read)
        if not is_vector(bias.shape):
            return f"its bias '{bias.name}' is not one value per channel"
    return ""


def why_left_alone(node: gs.Node, functions: Sequence[gs.Function]) -> str:
    """Return why a node of any other operator that has weights is left alone.

    Args:
        node: the node.
        functions: those of the model.

    Returns:
        The reason; nothing where the node has no weights.
    """
    if is_standard(node, *_QUANTIZED):
        return "it is quantized"
    if held := _held(bodies(node), functions):
        return f"{held} in its bodies run in a scope of their own"
    called = _called(node, functions)
    if held := _held(called, functions):
        return f"{held} inside of a function are shared by all of its calls"
    # Weights of recurrent nodes are put together from constants, gate by gate, where they are not
    # one constant each.
    holds = is_standard(node, *_RECURRENT) or any(map(_is_matrix, node.inputs))
    if called or not holds:
        return ""
    if is_standard(node, "Gather"):
        return _why_no_table(node)
    if is_standard(node, *_NOT_LINEAR):
        return f"adapters cannot be fused into '{node.op}'"
    if not is_standard(node, str(node.op)):
        return f"its operator '{node.domain}.{node.op}' is not one of ONNX"
    return ""


def _why_no_table(node: gs.Node) -> str:
    """Return why an embedding, which looks up rows of a table, is left alone; "" for no such."""
    table, index = node.inputs
    is_looked_up = not isinstance(index, gs.Constant) and not node.attrs.get("axis", 0)
    if not is_looked_up or constants.computed_type(table) not in constants.COMPUTED:
        return ""
    return f"it looks up rows of its table '{table.name}', which is no linear map of its input"


def _why_no_parameter(role: str, tensor: gs.Tensor) -> str:
    if any(node.op == "DequantizeLinear" for node in tensor.inputs):
        return f"its {role} '{tensor.name}' is quantized"
    if is_dense(tensor) and role == "weight":
        return f"its weight '{tensor.name}' is not of type float16, float32 or float64"
    if tensor.inputs:
        return f"its {role} '{tensor.name}' is computed by {tensor.inputs[0].op}, not stored"
    if isinstance(tensor, gs.Constant) and not is_dense(tensor):
        return f"its {role} '{tensor.name}' is a sparse initializer"
    return f"its {role} '{tensor.name}' is not an initializer"


def _called(node: gs.Node, functions: Sequence[gs.Function]) -> list[gs.Function]:
    return [f for f in functions if (f.domain, f.name) == (node.domain, node.op)]


def _held(scopes: Sequence[gs.Graph | gs.Function], functions: Sequence[gs.Function]) -> str:
    """Return which nodes that hold weights are inside of bodies or functions, nothing for none.

    Functions have no initializers, so what computes their weights may be anything. A function may
    call others, but not itself.
    """
    kinds = set()
    pending, seen = list(scopes), set()
    while pending:
        scope = pending.pop()
        nodes = () if id(scope) in seen else all_nodes(scope.nodes)
        seen.add(id(scope))
        for node in nodes:
            if is_standard(node, *LINEAR_OPERATORS, *_QUANTIZED):
                kinds.add("linear")
            elif is_standard(node, *_RECURRENT):
                kinds.add("recurrent")
            pending += _called(node, functions)
    return f"{' and '.join(sorted(kinds))} nodes" if kinds else ""


def _is_matrix(tensor: gs.Tensor) -> bool:
    if not isinstance(tensor, gs.Constant):
        return False
    return len(tensor.shape) > 1 and sum(extent > 1 for extent in tensor.shape) > 1
