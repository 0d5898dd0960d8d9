"""SmolLM2-135M with fewer layers: real weights, embedding and vocabulary, at a size that an emulator can run.

Of its 30 layers the first LAYERS are kept, with the final norm and the tied head as they are. What it says makes little sense;
what matters is that its weights and activations have the outliers that random ones lack.
"""

from __future__ import annotations

from pathlib import Path

import gguf

LAYERS = 4
TEXT = (
    "The history of the printing press begins in China, where woodblock printing on paper was common by the year 900. "
    "Movable type of baked clay came some two hundred years later, and metal type was cast in Korea before Gutenberg was born. "
    "Printing spread from Mainz to Venice, where Aldus made small books that one could carry, and prices fell in a lifetime. "
    "By 1500 there were presses in more than two hundred towns, and what one scholar wrote another could check."
)


def write(source: Path, target: Path) -> Path:
    """Write the file again with gguf-py, its tensors as they are packed."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue  # the writer makes these
        element = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        value = LAYERS if field.name == "llama.block_count" else field.contents()
        writer.add_key_value(field.name, value, field.types[0], element)
    for tensor in reader.tensors:
        if not tensor.name.startswith("blk.") or int(tensor.name.split(".")[1]) < LAYERS:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
