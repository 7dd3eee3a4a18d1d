"""Nets in ONNX files: read, checked, cut down to the wanted tensors. ONNX Runtime runs them as they are."""
