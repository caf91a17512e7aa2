"""The command line: arguments in, exit status out."""

from fskd_onnx.cli.start import main

__all__ = ["main"]
