"""A model as one file that runs without this package: StableHLO for JAX, or ONNX.

`runtime` loads either and imports nothing else of the package, so this file imports nothing.
"""
