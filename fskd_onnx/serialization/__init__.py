"""ONNX files and other output files."""
