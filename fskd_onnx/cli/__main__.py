"""Run the ``fskd-onnx`` command as ``python -m fskd_onnx.cli``."""

from fskd_onnx.cli.start import main

main()
