"""Deployment: packed 1-bit networks and ONNX, verified and measured."""
