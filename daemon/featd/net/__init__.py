"""Caffe nets: reading definitions and weights, upgrading, inferring shapes, lowering to ONNX. Runs nothing."""
