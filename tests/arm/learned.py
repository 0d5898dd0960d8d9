"""A tiny llama that knows a text by heart: small enough for an emulator, and sure of what it says.

Of random weights the two likeliest tokens are often nearly as likely, and any rounding chooses between them; a model that was
trained says the same wherever it runs, or something is wrong with it there.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer

from tests import tiny_folder

TEXT = (
    "The history of the printing press begins in China, where woodblock printing on paper was common by the year 900. "
    "Movable type of baked clay came some two hundred years later, and metal type was cast in Korea before Gutenberg was born."
)
PROMPT = TEXT[:24]
STEPS, ENOUGH = 400, 0.02  # of training at most, and the loss at which it knows the text


def write(folder: Path) -> Path:
    """The model of `tests.tiny_folder`, trained on TEXT."""
    tiny_folder.write(folder)
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = torch.tensor([tokenizer.encode(TEXT, add_special_tokens=False).ids])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        loss = model(input_ids=ids, labels=ids).loss
        if loss.item() < ENOUGH:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder
