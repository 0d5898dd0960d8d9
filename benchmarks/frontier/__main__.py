"""The command line of quality against speed."""

from __future__ import annotations

import sys
from pathlib import Path

from edgellm.benchmarks import gguf_file, result, script
from edgellm.benchmarks.frontier import plot, table
from edgellm.benchmarks.peers import command
from edgellm.benchmarks.permuted import SUFFIX
from edgellm.errors import UsageError

PROGRAM = "edgellm.benchmarks.frontier"
MODELS = (f"smollm2{SUFFIX}",)  # larger ones take hours
OURS = (
    *(f"onnx:{kind}" for kind in ("default", "int4-4.7", "int4-b32", "int8")),
    *(f"tflite:{kind}" for kind in ("default", "int4-b32", "int4-row-4.3", "int8")),
)
THEIRS = ("q4_0", "q4_1", "iq4_nl", "q4_k_s", "q4_k_m", "q5_0", "q5_k_m", "q6_k")
# without flash attention llama.cpp is the faster far into a context, and the slower at its beginning
NOFLASH = ("q4_0", "q4_k_s", "q4_k_m", "q5_0")
ENGINES = (
    *(f"edgellm-{name}" for name in OURS),
    *(f"llama.cpp:{kind}{matrix}" for kind in THEIRS for matrix in ("", "-imatrix")),
    "llama.cpp:q8_0",
    *(f"llama.cpp:{kind}-imatrix-noflash" for kind in NOFLASH),
)
UNQUANTIZED = ("F32", "F16", "BF16")


@script.ends
def main() -> None:
    """Measure or read, draw, write."""
    parser = command.parser(PROGRAM, "Quality against speed, beside llama.cpp's files.", models=MODELS, engines=ENGINES)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a picture: .svg or .png")
    arguments = parser.parse_args()
    command.check(arguments)
    if arguments.plot:
        plot.check(arguments.plot)
    run = result.read(arguments.from_json) if arguments.from_json else command.run(arguments, PROGRAM, admit)
    if run is not None:
        command.write(run, table.markdown(run), arguments)
        if arguments.plot:
            plot.draw(run, arguments.plot)


def admit(name: str, source: Path) -> None:
    """Only values that lie on no grid yet: llama.cpp copies what already has the type it is to make, and loses nothing.

    Raises:
        UsageError: a GGUF file that is quantized.
    """
    if source.suffix.lower() != ".gguf":
        return
    kinds = {tensor.tensor_type.name for tensor in gguf_file.open_gguf(source).tensors} - set(UNQUANTIZED)
    if kinds:
        what = f"its values are on the grids of {', '.join(sorted(kinds))} already"
        raise UsageError(what, where=f"--models {name}", fix=f"give {name}{SUFFIX}")


if __name__ == "__main__":
    sys.exit(main())
