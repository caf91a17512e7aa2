"""Run the ``fskd-onnx`` command as ``python -m fskd_onnx``."""

from fskd_onnx.cli import main

main()
