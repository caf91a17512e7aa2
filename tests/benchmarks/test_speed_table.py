"""The benchmark of speed runs: its smallest cases, and what its networks are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.benchmarks import shapes, speed


@pytest.mark.parametrize("network", ["chain-2", "vgg16-D", "resnet20-inner50"])
def test_every_network_of_small_images_is_read(network: str) -> None:
    figures = speed.measure(speed.Case(network, 6, "pointwise"))
    assert figures.seconds > 0


@pytest.mark.parametrize("adapter", ["pointwise", "paper"])
def test_the_smallest_case_gives_a_row(adapter: str) -> None:
    case = speed.Case("chain-2", 40, adapter)
    figures = speed.measure(case)
    assert min(figures.floor, figures.seconds, figures.memory) > 0
    cells = figures.row(case).strip("|").split("|")
    assert len(cells) == len(speed.HEAD.splitlines()[0].strip("|").split("|"))
    assert [cell.strip() for cell in cells[:3]] == ["chain-2", "40", adapter]


def test_a_compression_says_what_its_stages_took() -> None:
    case = speed.Case("chain-3", 40, "compress", memory_limit=0)
    figures = speed.measure(case)
    assert set(figures.stages) >= {"analysis", "plan", "rewrite", "fit"}
    assert 0 < figures.stages["analysis"] < figures.stages["total"]
    line = figures.line_of_stages(case)
    assert line.startswith("- chain-3, 40 samples, compress, 0 MB: total ")
    assert ", fit " in line


def test_quick_is_a_part_of_all() -> None:
    quick, everything = (list(speed.cases(quick)) for quick in (True, False))
    assert {case.network for case in quick} <= {case.network for case in everything}
    assert len(quick) < len(everything)


@pytest.mark.parametrize(
    "build",
    [
        shapes.vgg16,
        shapes.mobilenet_v2,
        shapes.efficientnet_lite0,
        shapes.inception_v1,
        lambda: shapes.chain(3),
    ],
)
def test_a_student_is_its_teacher_with_fewer_channels(build: object) -> None:
    teacher, student = build()  # type: ignore[operator]
    for model in (teacher, student):
        onnx.checker.check_model(model, full_check=True)
    names = [[node.name for node in model.graph.node] for model in (teacher, student)]
    assert names[0] == names[1]
    sizes = [[int(np.prod(t.dims)) for t in m.graph.initializer] for m in (teacher, student)]
    assert all(small <= large for large, small in zip(*sizes, strict=True))
    assert sum(sizes[1]) < sum(sizes[0])
