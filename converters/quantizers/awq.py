"""Scale search on a model whose loud channels were made larger first, so that rounding costs less where it counts.

The factors are folded into the weights around (`edgellm.converters.transforms.scaling`); what is left to do is `imatrix`.

Source: Lin et al., "AWQ: Activation-aware Weight Quantization" (2023), section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from edgellm.converters.quantizers import imatrix
from edgellm.converters.transforms import scaling
from edgellm.converters.weights import Array, LazyTensor
from edgellm.scheme import Recipe
from edgellm.spec import ModelSpec

CALIBRATED = True

quantize = imatrix.quantize


def transform(
    spec: ModelSpec, tensors: Callable[[str], LazyTensor], importance: Mapping[str, Array], recipes: Sequence[Recipe]
) -> tuple[Callable[[str], LazyTensor], Mapping[str, Array]]:
    """The same function with weights that round better; see `edgellm.converters.quantizers.Transform`."""
    factors = scaling.awq(spec, tensors, importance, [recipe.scheme for recipe in recipes], imatrix.quantize)
    return scaling.apply(spec, tensors, factors), scaling.statistics(spec, importance, factors, 2)
