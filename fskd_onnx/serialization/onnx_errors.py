"""What the checker and the shape inference of ONNX raise, as one clause about a model."""

from __future__ import annotations

import re

import onnx

_NOISE = re.compile(
    r"\[(?:ShapeInferenceError|TypeInferenceError)\] ?|Inference error\(s\): ?|^Field '\S+' of "
    r"'\S+' is required but missing\.$"
)
_NODE = re.compile(r"\(op_type:(?P<op>\S*?)(?:, node name: (?P<name>.*?))?\): ")
_SCHEMA = re.compile(r"Node ?\((?P<name>.*?)\) with schema\((?:.*?)::(?P<op>\w+):\d+\) has ")
_UNWRITTEN = re.compile(r"Nodes in a graph must be topologically sorted, however input '(.*)' of")
_UNKNOWN = re.compile(r"No Op registered for (?P<op>\S+) with domain_version of (?P<version>-?\d+)")
_REQUIRED = re.compile(r"Field '(?P<part>\S+)' of '(?P<of>\S+)' is required but missing")


def in_plain_words(error: Exception, model: onnx.ModelProto | None = None) -> str:
    """Return what a library says is wrong with a model, on one line and without its own names.

    Args:
        error: of ONNX, or any other.
        model: the model, where it is read.
    """
    text = next(iter(str(error).strip().splitlines()), type(error).__name__).strip().rstrip(".")
    if found := _UNWRITTEN.search(text):
        return _unwritten(found[1], model)
    if found := _UNKNOWN.search(text):
        domain = "" if model is None else _domain_of(found["op"], model)
        return f"there is no operator {domain}{found['op']} in version {found['version']}"
    if found := _REQUIRED.search(text):
        return f"a {found['of']} in it lacks its {found['part']}"
    if model is not None and (tensor := _tensor_of(text, model)) is not None:
        return f"its tensor '{tensor}': {text}"
    text = _NODE.sub(lambda found: f"its node '{found['name'] or ''}' ({found['op']}): ", text)
    text = _SCHEMA.sub(lambda found: f"its node '{found['name']}' ({found['op']}) has ", text)
    return _NOISE.sub("", text).strip()


def _tensor_of(text: str, model: onnx.ModelProto) -> str | None:
    """Return the tensor that a complaint is about which does not name it."""
    for tensor in model.graph.initializer:
        # Protobuf gives a name that is no UTF-8 as bytes.
        if tensor.HasField("raw_data") or str(tensor.name) in text:
            continue
        try:
            onnx.checker.check_tensor(tensor)
        except Exception as error:
            if text in str(error):
                return str(tensor.name)
    return None


def _unwritten(tensor: str, model: onnx.ModelProto | None) -> str:
    """Return what is wrong with a tensor that is read before it is written."""
    nodes = [] if model is None else list(model.graph.node)
    if any(tensor in node.output for node in nodes):
        return f"its tensor '{tensor}' is computed from itself, in a cycle of nodes"
    reader = next((node for node in nodes if tensor in node.input), None)
    by = "" if reader is None else f" by its node '{reader.name}' ({reader.op_type})"
    return (
        f"its tensor '{tensor}' is read{by} and is neither an input, an initializer nor the output "
        "of a node"
    )


def _domain_of(operator: str, model: onnx.ModelProto) -> str:
    domains = {node.domain for node in model.graph.node if node.op_type == operator} - {""}
    return f"{domains.pop()}." if len(domains) == 1 else ""
