"""What an architecture file says: a config becomes a ModelSpec, canonical names become the checkpoint's.

An architecture is one module of this folder, named after transformers' `model_type` (without `_text`) and after GGUF's
`general.architecture`. It holds no graph code.
"""
