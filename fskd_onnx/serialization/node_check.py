"""Weights and attributes of nodes that do not fit together, and functions that never end.

The checker of ONNX sees types and shapes. That groups divide channels, that a bias is as wide as
its kernel, and how many nodes functions come to, it does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from fskd_onnx.errors import one_of

# No network has as many; to inline them takes for ever.
_MOST_NODES = 10**7
# A chain of calls as long as that comes from no exporter, and is walked by recursion.
_MOST_CALLS = 200

_SAME_SHAPE = ("Identity", "Cast")
_PADDINGS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
# Beginnings of domains whose operators ONNX and ONNX Runtime know.
_OF_OTHERS = ("ai.onnx", "com.microsoft", "com.ms.")

_Function = tuple[str, str]  # domain and name


def check_linear_nodes(model: onnx.ModelProto) -> None:
    """Check the attributes and the weights of convolutions and Gemms.

    Args:
        model: a model that the checker of ONNX lets pass.

    Raises:
        ValueError: they do not fit together; a clause about the model.
    """
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type in _SAME_SHAPE and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                shapes[node.output[0]] = tuple(attribute.t.dims)
        wrong = None
        if node.op_type in ("Conv", "ConvTranspose"):
            wrong = _wrong_convolution(node, shapes)
        elif node.op_type == "Gemm":
            wrong = _wrong_gemm(node, shapes)
        if wrong:
            called = node.name or node.output[0]
            raise ValueError(f"its node '{called}' ({node.op_type}) has {wrong}")


def _wrong_convolution(node: onnx.NodeProto, shapes: Mapping[str, Sequence[int]]) -> str | None:
    """Return what a convolution has that does not fit, None where all does."""
    attributes = {attribute.name: attribute for attribute in node.attribute}
    padding = attributes["auto_pad"].s.decode(errors="replace") if "auto_pad" in attributes else ""
    if padding and padding not in _PADDINGS:
        return f"the auto_pad '{padding}', and there is {one_of(_PADDINGS)}"
    group = attributes["group"].i if "group" in attributes else 1
    if group < 1:
        return f"the group {group}, and there is at least one"
    weight = shapes.get(node.input[1])
    if weight is None:
        return None
    if len(weight) < 3:
        return f"weights '{node.input[1]}' of shape {tuple(weight)}, which are no kernels"
    if weight[0] % group:
        return f"the group {group}, which does not divide the {weight[0]} of '{node.input[1]}'"
    kernel = list(attributes["kernel_shape"].ints) if "kernel_shape" in attributes else None
    if kernel is not None and kernel != list(weight[2:]):
        return (
            f"the kernel_shape {kernel}, and its weights '{node.input[1]}' have {list(weight[2:])}"
        )
    width = weight[0] if node.op_type == "Conv" else weight[1] * group
    bias = shapes.get(node.input[2]) if len(node.input) > 2 else None
    if bias is not None and tuple(bias) != (width,):
        return f"a bias '{node.input[2]}' of shape {tuple(bias)}, and {width} output channels"
    return None


def _wrong_gemm(node: onnx.NodeProto, shapes: Mapping[str, Sequence[int]]) -> str | None:
    """Return what a Gemm has that does not fit, None where all does."""
    weight = shapes.get(node.input[1])
    bias = shapes.get(node.input[2]) if len(node.input) > 2 else None
    if weight is None or bias is None or len(weight) != 2 or not bias:
        return None
    width = weight[0 if any(a.name == "transB" and a.i for a in node.attribute) else 1]
    if bias[-1] in (1, width):
        return None
    return f"a bias '{node.input[2]}' of shape {tuple(bias)}, and {width} outputs"


def check_functions(model: onnx.ModelProto) -> None:
    """Check that functions call what there is, and come to a number of nodes that can be.

    The checker of ONNX and ONNX Runtime walk them call by call, however many that are.

    Args:
        model: any model.

    Raises:
        ValueError: they do not; a clause about the model.
    """
    functions = {(f.domain, f.name): f for f in model.functions}
    own = {domain for domain, _ in functions if not domain.startswith(_OF_OTHERS)} - {""}
    for function in model.functions:
        for node in function.node:
            if node.domain in own and (node.domain, node.op_type) not in functions:
                raise ValueError(
                    f"its function '{function.name}' calls '{node.op_type}' of '{node.domain}', "
                    "which it does not hold"
                )
    sizes: dict[_Function, int] = {}
    for start in functions:
        chain = [start]  # of calls that are not counted yet
        while chain:
            called = [(node.domain, node.op_type) for node in functions[chain[-1]].node]
            missing = next((c for c in called if c in functions and c not in sizes), None)
            if missing is None:
                key = chain.pop()
                sizes[key] = sum(sizes.get(c, 1) for c in called)
                continue
            if missing in chain or len(chain) > _MOST_CALLS:
                what = "calls itself" if missing in chain else "calls others too deep"
                raise ValueError(f"its function '{missing[1]}' {what}")
            chain.append(missing)
    total = sum(sizes.get((node.domain, node.op_type), 1) for node in model.graph.node)
    if max((total, *sizes.values())) > _MOST_NODES:
        raise ValueError(
            f"it has {max((total, *sizes.values()))} nodes once its functions are inlined, more "
            "than can be run"
        )
