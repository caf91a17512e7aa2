"""Versions that a result depends on."""

from __future__ import annotations

import importlib.metadata


def versions_used() -> dict[str, str]:
    """Return the versions of this package and of those that it computes with."""
    versions = {"fskd-onnx": importlib.metadata.version("fskd-onnx")}
    for package in ("onnx", "onnxruntime-gpu", "onnxruntime", "onnx-graphsurgeon", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
