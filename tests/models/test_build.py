from pathlib import Path

import pytest
import torch

from models import build, zoo
from models.data import Split
from models.networks import Network, vgg16
from models.train import Recipe


def test_cache_reuses_what_it_has_and_drops_what_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainings: list[Network] = []

    def train(network: Network, data: Split, recipe: Recipe) -> None:
        trainings.append(network.eval())

    def export(network: Network, path: Path) -> Path:
        path.write_bytes(b"exported")
        return path

    monkeypatch.setenv("FSKD_ONNX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(zoo.TEACHERS, "tiny", zoo.Teacher(lambda: vgg16((2,) * 13), Recipe(1, 0.1)))
    monkeypatch.setattr("models.data.load", lambda split: None)
    monkeypatch.setattr(zoo, "train", train)
    monkeypatch.setattr(build, "export", export)

    assert build.teacher_path("tiny") == tmp_path / "cache" / "tiny.onnx"
    student = build.student_path("tiny", "D")
    assert student == tmp_path / "cache" / "tiny-D.onnx"
    assert student.is_file()
    assert len(trainings) == 1
    assert "reusing" in capsys.readouterr().out

    again = zoo.teacher("tiny")
    assert not again.training
    expected = trainings[0].state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())

    zoo.teacher("tiny", retrain=True)
    assert len(trainings) == 2
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["tiny.pt"]
