"""``python -m fskd_onnx`` is the ``fskd-onnx`` command."""

from fskd_onnx.cli.app import main

main()
