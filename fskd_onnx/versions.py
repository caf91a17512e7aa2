"""Versions that a result depends on."""

from __future__ import annotations

import importlib.metadata


def versions_used() -> dict[str, str]:
    """Return the versions of this package and of those that it computes with."""
    versions = {"fskd-onnx": "(not installed)"}
    others = ("onnx", "onnxruntime-gpu", "onnxruntime", "onnx-graphsurgeon", "numpy")
    for package in ("fskd-onnx", *others):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
