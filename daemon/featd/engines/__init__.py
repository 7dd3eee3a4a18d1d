"""What runs a net: real Caffe, or ONNX Runtime on the lowered net. Made after the fork, in the worker."""
