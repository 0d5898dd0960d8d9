"""What a user asks of a conversion's arithmetic, checked before a source is opened."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgellm.converters import calibration_text, quantizers, recipe_file, recipes
from edgellm.converters.recipe_file import RecipeFile
from edgellm.converters.targets import Target
from edgellm.errors import UsageError
from edgellm.own_text import Conversations, Template
from edgellm.scheme import Recipe

STATIC = ("static", "int8", "static-int8", "int8-static")  # what somebody may call scales of 8 bits that are fixed beforehand
ROW_SCALES = 0  # the block of products that take int16: a scale a row


@dataclass(frozen=True)
class Choices:
    """Quantization as somebody wants it.

    Attributes:
        quant: "int4", "int8" or "fp32".
        method: None takes the level's own.
        block_size: None for the target's own.
        kv: "fp32", "int8", or None for the target's own.
        bits_per_weight: of the linears, for a search of mixed precision; None for what the target adds to the recipe's.
        file: the recipe file.
        text: to calibrate on; None takes the one that comes with edgellm.
        rounds_anew: somebody named the method, so that codes which the source brings are not kept.
        activations: "dynamic", "int16" or "none": what comes into products with quantized weights.
        looks: a text may be read to find out what suits activations: it takes seconds, and a text.
        chat: conversations to calibrate on; once the model's template is known, `written` makes them the text.
    """

    quant: str
    method: str | None
    block_size: int | None
    kv: str | None
    bits_per_weight: float | None
    file: RecipeFile
    text: str | None
    rounds_anew: bool = False
    activations: str = "dynamic"
    looks: bool = True
    chat: Conversations | None = None

    @classmethod
    def read(
        cls,
        *,
        quant: str | None,
        method: str | None,
        block_size: int | None,
        kv: str | None,
        bits_per_weight: float | None,
        recipe: str | os.PathLike[str] | None,
        calibration: str | os.PathLike[str] | None,
        preset: str,
        activations: str | None = None,
    ) -> Choices:
        """From the arguments of `edgellm.convert`; UsageError for what makes no sense."""
        file = recipe_file.NONE if recipe is None else recipe_file.read(recipe)
        chosen = calibration_text.chosen(calibration)
        text, chat = (None, chosen) if isinstance(chosen, Conversations) else (chosen, None)
        quant = quant or file.base or "int4"
        if quant not in recipes.QUANTS:
            raise UsageError(
                f"unknown quantization '{quant}'", where="--quant", fix=f"choose one of {', '.join(recipes.QUANTS)}"
            )
        if method is not None:
            quantizers.find(method)
        rounds_anew = method is not None
        looks = method != "rtn" and preset != "fast" and calibration != calibration_text.NO_TEXT
        _check_activations(activations, quant, block_size, file)
        if preset == "fast":
            method = method or ("rtn" if quant != "fp32" else None)
        if calibration == calibration_text.NO_TEXT:
            method, kv = calibration_text.without(method, kv, activations)
        if bits_per_weight is not None:
            _check_budget(quant, method, file)
        activations = activations or "dynamic"
        return cls(quant, method, block_size, kv, bits_per_weight, file, text, rounds_anew, activations, looks, chat)

    def written(self, template: Template | None) -> Choices:
        """With conversations written out as a text, where those are what calibration runs on.

        Raises:
            UsageError: the model has no template, or it does not take one of them.
            BundleError: the template did what a chat template must not.
        """
        return self if self.chat is None else replace(self, text=self.chat.written(template), chat=None)

    @property
    def rounding(self) -> str:
        """The method that rounds what nobody settled: the level's, and int4's where a file asks for few bits under int8."""
        level = "int4" if self.quant == "int8" and self.file.has_few_bits else self.quant
        return self.method or recipes.METHODS.get(level, "imatrix")  # fp32 may have a few quantized tensors

    @property
    def wants_mixed(self) -> bool:
        """Whether a search says who gets more bits: when asked, and by default where errors are weighed anyway."""
        if self.bits_per_weight is not None:
            return True
        return self.quant == "int4" and self.method is None and self.block_size is None and self.file == recipe_file.NONE

    def size(self, target: Target) -> int:
        """Weights that share a scale."""
        if self.activations == "int16":
            return ROW_SCALES
        return target.BLOCK_SIZE if self.block_size is None else self.block_size

    def recipes(self, targets: Mapping[str, Target]) -> dict[str, Recipe]:
        """What every tensor gets, by target, as far as the model has no say in it; UsageError for blocks that there are not."""
        found = {}
        for name, target in targets.items():
            kv = self.kv or ("fp32" if self.quant == "fp32" else target.KV)
            refused = target.NO_ACTIVATIONS.get(recipes.ACTIVATIONS[self.activations])
            if refused is not None and (self.quant != "fp32" or self.file != recipe_file.NONE):
                raise UsageError(refused[0], where="--activations", fix=refused[1])
            found[name] = recipes.recipe(self.quant, self.method, self.size(target), target.grid, kv, self.activations)
            self.file.check(name, target.grid, target.BLOCKS)
        return found


def _check_activations(activations: str | None, quant: str, block_size: int | None, file: RecipeFile) -> None:
    where = "--activations"
    if activations is None:
        return
    if activations in STATIC:
        raise UsageError(
            "8 bits with scales fixed beforehand ruin a model (SmolLM2: a KL of .26 to .71, and .003 to .02 as they come)",
            where=where,
            fix="use dynamic, or int16 on tflite",
        )
    if activations not in recipes.ACTIVATIONS:
        known = ", ".join(recipes.ACTIVATIONS)
        raise UsageError(f"unknown activations '{activations}'", where=where, fix=f"choose one of {known}")
    if activations != "none" and quant == "fp32" and file == recipe_file.NONE:
        raise UsageError(
            "fp32 has no quantized weights, and only their products round activations", where=where, fix="leave it out"
        )
    if activations == "int16" and block_size not in (None, ROW_SCALES):
        raise UsageError(
            f"int16 activations need a scale a row, and not blocks of {block_size}", where="--block-size", fix="leave it out"
        )


def _check_budget(quant: str, method: str | None, file: RecipeFile) -> None:
    where = "--bpw"
    if quant != "int4":
        raise UsageError("a budget of bits is for int4", where=where, fix="leave it out, or use --quant int4")
    if not quantizers.is_calibrated(method or recipes.METHODS[quant]):
        raise UsageError(f"'{method}' has no text to find out where bits count", where=where, fix="leave out --method")
    if file != recipe_file.NONE:
        raise UsageError("a recipe file says who gets how many bits", where=where, fix="leave out one of the two")
