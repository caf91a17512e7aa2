"""Why terms of decoupled convolutions are branches: ``python -m tests.benchmarks.terms``.

A convolution of 3 x 3, as many channels out as in, is put beside what it becomes with several terms
(`fskd_onnx.passes.decouple`): one depthwise node of as many outputs per channel and a 1 x 1 node,
or a branch for each term (`fskd_onnx.passes.split_terms`). Printed is the time of each by that of
the convolution, in turns in the same process. Where the runtime's blocks of channels do not divide
their number (12, 30), branches gain nothing.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from fskd_onnx.runtime.latency import compare_latency
from fskd_onnx.runtime.providers import Runtime, open_runtime
from tests.benchmarks.markers import write_between
from tests.helpers import build

# Channels and side of the image.
SHAPES = (*((12, 64), (16, 64), (20, 56), (30, 56), (32, 56), (64, 32), (100, 28), (256, 14)),)
STRIDES = (1, 2)
TERMS = (2, 4)


def models(channels: int, side: int, stride: int, terms: int) -> Mapping[str, onnx.ModelProto]:
    """Return the convolution, the chain and the branches."""
    c, moves = channels, f"pads = [1,1,1,1], strides = [{stride},{stride}]"
    each = range(terms)
    added = ["t0", *(f"s{k}" for k in each[1:-1]), "y"]
    bodies = {
        "convolution": (f"float[{c},{c},3,3] w", f"y = Conv <{moves}> (x, w)"),
        "chain": (
            f"float[{c * terms},1,3,3] d, float[{c},{c * terms},1,1] p",
            f"h = Conv <{moves}, group = {c}> (x, d) y = Conv (h, p)",
        ),
        "branches": (
            ", ".join(f"float[{c},1,3,3] d{k}, float[{c},{c},1,1] p{k}" for k in each),
            " ".join(
                f"h{k} = Conv <{moves}, group = {c}> (x, d{k}) t{k} = Conv (h{k}, p{k})"
                for k in each
            )
            + "".join(f" {added[k]} = Add ({added[k - 1]}, t{k})" for k in each[1:]),
        ),
    }
    return {
        name: build(f"g (float[1,{c},{side},{side}] x) => (float[1,{c},A,B] y) <{w}> {{ {nodes} }}")
        for name, (w, nodes) in bodies.items()
    }


def ratios(
    runtime: Runtime, channels: int, side: int, stride: int, terms: int, limit: float = 1.0
) -> tuple[float, float]:
    """Return the time of the chain and of the branches by that of the convolution."""
    every = models(channels, side, stride, terms)
    noise = np.random.default_rng(0).standard_normal((1, channels, side, side), np.float32)
    _, chain, branches = compare_latency(every, [{"x": noise}] * 3, runtime, limit).ratios
    return chain, branches


def main() -> None:
    """Print the table, or write it between its markers."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.terms")
    parser.add_argument("--write", type=Path, metavar="FILE")
    file = parser.parse_args().write
    runtime = open_runtime(["cpu"])
    lines = [
        "| channels | side | stride | terms | one depthwise node | branches |",
        "|---" * 6 + "|",
    ]
    for (channels, side), stride, terms in itertools.product(SHAPES, STRIDES, TERMS):
        chain, branches = ratios(runtime, channels, side, stride, terms)
        cells = channels, side, stride, terms, f"{chain:.2f}", f"{branches:.2f}"
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    text = "\n".join(lines)
    print(text)
    if file is not None:
        command = f"python -m tests.benchmarks.terms --write {file}"
        write_between(file, "terms", f"{text}\n\nPrinted by `{command}`.\n")


if __name__ == "__main__":
    main()
