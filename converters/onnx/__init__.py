"""Back end that writes bundles for onnxruntime."""
