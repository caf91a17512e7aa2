"""Values of options are read as they are written, or refused."""

from __future__ import annotations

import pytest
import typer

from fskd_onnx.cli.values import byte_count, choice, ratio


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1500", 1500),
        ("200MB", 200_000_000),
        ("2gb", 2_000_000_000),
        ("1.5 kB", 1500),
        ("1MiB", 2**20),
        ("7b", 7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert byte_count(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "2 bananas", "1e9", "inf", "2MBB", "3M"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        byte_count(text)


@pytest.mark.parametrize(("text", "fraction"), [("0.8", 0.8), ("80%", 0.8), ("1", 1.0)])
def test_ratios(text: str, fraction: float) -> None:
    assert ratio(text) == fraction


@pytest.mark.parametrize("text", ["", "%", "80 percent", "a"])
def test_what_is_no_ratio(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        ratio(text)


def test_choices_are_named_in_any_case() -> None:
    assert choice(None, ("NCHW", "NHWC"), "--layout") is None
    assert choice("nhwc", ("NCHW", "NHWC"), "--layout") == "NHWC"


@pytest.mark.parametrize(("text", "hint"), [("imagnet", "; did you mean imagenet?"), ("x", "")])
def test_what_is_no_choice(text: str, hint: str) -> None:
    with pytest.raises(typer.BadParameter) as caught:
        choice(text, ("imagenet", "unit"), "--preprocess")
    assert str(caught.value) == f"'{text}' is none of imagenet, unit{hint}"
    assert caught.value.param_hint == "--preprocess"
