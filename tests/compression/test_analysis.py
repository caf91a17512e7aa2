"""The moments of an analysis are those of columns that NumPy computes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest

from fskd_onnx.compression import analysis
from fskd_onnx.compression.analysis import NodeMoments, analyse
from fskd_onnx.compression.channel_scores import reader_places
from fskd_onnx.passes.analysis.prunable_channels import PrunableChannels
from fskd_onnx.pipeline.divided_samples import divide_samples, open_samples
from fskd_onnx.runtime.tensor_store import TensorStore
from fskd_onnx.samples.batches import Batch
from tests.compressible import cpu, loaded, options, samples_of, teacher
from tests.helpers import Array, build, run

COUNT = 12


def analysed(
    model: onnx.ModelProto, samples: dict[str, Array]
) -> tuple[dict[str, NodeMoments], Sequence[Batch]]:
    own, chosen, runtime = loaded(model), options(), cpu()
    graph = own.graph()
    channels = PrunableChannels(graph)
    views = list(channels.linears.values())
    with TensorStore() as store:
        read = open_samples(samples, own, chosen.run)
        divided = divide_samples((own,), read, chosen.fit, store, runtime)
        batches = divided.splits.final.batches
        found = list(
            analyse(runtime, graph, views, reader_places(channels), divided.decoded, batches)
        )
    return {node.linear.name: node for node in found}, batches


def halves(batches: Sequence[Batch]) -> list[Array]:
    """Give the samples of each half."""
    found: list[list[int]] = [[], []]
    for batch in batches:
        found[batch.fold % 2] += batch.samples[: batch.count].tolist()
    return [np.array(own) for own in found]


def tensors(model: onnx.ModelProto, samples: dict[str, Array], *names: str) -> list[Array]:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {output.name for output in model.graph.output}
    copy.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, 1, None) for name in names if name not in known
    )
    values = run(copy, samples)
    return [values[name].astype(np.float64) for name in names]


def patches(x: Array, size: int, pad: int, stride: int = 1) -> Array:
    """Give the patches (p, columns) of images (samples, channels, height, width)."""
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (2, 3))
    windows = windows[:, :, ::stride, ::stride]  # (samples, channels, y, x, size, size)
    return np.asarray(windows.transpose(1, 4, 5, 0, 2, 3).reshape(x.shape[1] * size**2, -1))


def gram(columns: Array) -> Array:
    centred = columns - columns.mean(axis=1, keepdims=True)
    return np.asarray(centred @ centred.T)


def close(one: Array, other: Array) -> None:
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6 * np.abs(other).max())


def test_moments_of_patches_and_responses() -> None:
    model = teacher("chain")
    samples = samples_of(model, COUNT)
    found, batches = analysed(model, samples)
    r1, y2 = tensors(model, samples, "r1", "y2")
    node = found["c2"]
    assert node.patches is not None
    for half, own in zip(node.patches, halves(batches), strict=True):
        close(half, gram(patches(r1[own], 3, 0, 2)))
    given = np.moveaxis(y2[np.concatenate(halves(batches))], 1, 0).reshape(y2.shape[1], -1)
    close(node.mean, given.mean(axis=1)[np.newaxis])
    close(node.covariance, np.cov(given, bias=True)[np.newaxis])


def test_of_very_many_channels_the_variance_of_each_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = teacher("chain")
    samples = samples_of(model, COUNT)
    whole = analysed(model, samples)[0]["c2"]
    monkeypatch.setattr(analysis, "MOST_OUTPUTS", 3)
    node = analysed(model, samples)[0]["c2"]
    close(node.mean, whole.mean)
    close(node.covariance.reshape(-1), np.diagonal(whole.covariance[0]))


def test_moments_of_channels_are_summed_over_taps() -> None:
    model = teacher("chain")
    samples = samples_of(model, COUNT)
    found, batches = analysed(model, samples)
    (r1,) = tensors(model, samples, "r1")
    for half, own in zip(found["c2"].channels["c1"], halves(batches), strict=True):
        by_tap = patches(r1[own], 3, 0, 2).reshape(r1.shape[1], 9, -1)
        close(half, np.sum([gram(by_tap[:, tap]) for tap in range(9)], axis=0))


def test_moments_of_flattened_channels_are_summed_over_positions() -> None:
    model = teacher("flatten")
    samples = samples_of(model, COUNT)
    found, batches = analysed(model, samples)
    (flat,) = tensors(model, samples, "f")
    for half, own in zip(found["f1"].channels["c1"], halves(batches), strict=True):
        by_position = flat[own].T.reshape(6, 4, -1)
        close(half, np.sum([gram(by_position[:, at]) for at in range(4)], axis=0))


@pytest.mark.parametrize("most", [analysis.MOST_REGRESSORS, 10])
def test_large_patches_and_groups_have_moments_of_channels_all_the_same(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(analysis, "MOST_REGRESSORS", most)
    for name, node, unit, tensor in (("chain", "c2", "c1", "r1"), ("grouped", "gr", "c1", "r1")):
        model = teacher(name)
        samples = samples_of(model, COUNT)
        found, batches = analysed(model, samples)
        assert (found[node].patches is None) == (name == "grouped" or most == 10)
        (values,) = tensors(model, samples, tensor)
        pad, stride = (0, 2) if name == "chain" else (1, 1)
        for half, own in zip(found[node].channels[unit], halves(batches), strict=True):
            by_tap = patches(values[own], 3, pad, stride).reshape(8, 9, -1)
            close(half, np.sum([gram(by_tap[:, tap]) for tap in range(9)], axis=0))


def test_a_node_without_finite_columns_is_left_out() -> None:
    model = build(
        """g (float[N,3,4,4] x) => (float[N,2,4,4] z)
          <float[4,3,1,1] w1, float[4] b1, float[2,4,1,1] w2> {
            [c1] y1 = Conv (x, w1, b1)
            r1 = Sqrt (y1)
            [c2] z = Conv (r1, w2)
        }""",
        {"b1": [-100] * 4},
    )
    found, _ = analysed(model, samples_of(model, COUNT))
    assert [*found] == ["c1"]
