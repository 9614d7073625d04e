"""A recurrent layer found among the tensors of a file, before anything is read: its cell, sizes and options."""

import functools
import inspect
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..checks import MAX_LAYERS
from ..frozen import Words
from ..layers import CELLS
from ..spec import Description, describe
from .tensors import REAL, Array, Tensor

SIZES = ("input_size", "hidden_size", "num_layers", "bias", "bidirectional", "proj_size", "heads")


@dataclass
class Found:
    """One layer of a file.

    Attributes
    ----------
    name
        Where it is in the file; empty if the file holds nothing else.
    origin
        Whose names and equations they are: "PyTorch", "Keras", ...
    tensors
        By PyTorch's names, complete and in PyTorch's order if it fits.
    said
        Options that the file or its format fixes.
    assumed
        Options that are so unless the caller says otherwise.
    cells
        The core's names of the cells that fit.
    sizes
        Of `SIZES`, what follows from the shapes.
    unfit
        Why no layer can be made of it; empty if one can.
    part
        "Embedding" or "Linear" for one of these, which our own files hold; empty for a recurrent layer.
    words
        What our own file keeps the matrices as, of a layer that was frozen with weights in fewer bits.
    scales
        Beside matrices of int8, by their names, (rows,) what an integer of a row counts.
    """

    name: str
    origin: str
    tensors: Mapping[str, Tensor]
    said: dict[str, Any] = field(default_factory=dict)
    assumed: dict[str, Any] = field(default_factory=dict)
    cells: list[str] = field(default_factory=list)
    sizes: dict[str, Any] = field(default_factory=dict)
    unfit: str = ""
    part: str = ""
    words: Words | None = None
    scales: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def dtype(self) -> str:
        """The dtype of the tensors, or all of them."""
        return ", ".join(sorted({tensor.dtype for tensor in self.tensors.values()}))

    @property
    def parameters(self) -> int:
        """How many numbers they are."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())


def options_of(cell: str) -> dict[str, Any]:
    """Return the options of a cell's layer with their defaults, without those that are sizes."""
    given = inspect.signature(CELLS[cell].layer).parameters.values()
    return {p.name: p.default for p in given if p.name not in (*SIZES, "rng")}


@functools.cache
def described(slstm: bool = False) -> list[tuple[str, bool, bool, Description]]:
    """Return the cells that are guessed, or those of the sLSTM, each with its description.

    Without and, where it can have them, with a projection and peepholes.
    """
    found = []
    for cell, kind in CELLS.items():
        if kind.guessed == slstm:
            continue
        can = () if kind.options.get("layer_norm") else inspect.signature(kind.layer).parameters
        for projection in (False, True)[: 1 + ("proj_size" in can)]:
            for peephole in (False, True)[: 1 + ("peephole" in can)]:
                found.append((cell, projection, peephole, describe(cell, projection, peephole)))
    return found


def fitting(found: Found, known: Mapping[str, Any]) -> list[str]:
    """Return the cells that what is known leaves: a general one only where an option names what no other computes."""
    cells = [c for c in found.cells if all(known.get(n, v) == v for n, v in CELLS[c].options.items())]
    return [c for c in cells if not c.endswith("_general")] or cells


def complete(found: Found, heads: int = 1, slstm: bool = False) -> Found:
    """Work out cells and sizes from names and shapes, or why there are none; `slstm`: of the sLSTM's cells alone."""
    found.unfit = found.unfit or _complete(found, heads, slstm)
    return found


def as_told(found: Found, options: Mapping[str, Any]) -> Found:
    """Return a layer of a file of weights alone as the one that ``heads`` and ``forget_gate`` among the options say.

    One that fits as it was found stays so, unless ``forget_gate`` or the ``nonlinearity`` of an RNN say that it is
    another: an RNN with four heads has the shapes of an LSTM.

    Raises
    ------
    ValueError
        For heads that are no number of heads.
    """
    if found.origin != "PyTorch" or not {"heads", "forget_gate"} & options.keys():
        return found
    heads = options.get("heads", 1)
    if isinstance(heads, (bool, np.bool_)) or not isinstance(heads, (int, np.integer)) or heads < 1:
        raise ValueError(f"load got heads={heads!r} in options=; heads must be an integer and at least 1")
    told = Found(found.name, found.origin, found.tensors, assumed=found.assumed)
    told = complete(told, int(heads), "forget_gate" in options)
    if found.unfit:
        return told
    return told if {"forget_gate", "nonlinearity"} & options.keys() and not told.unfit else found


def _complete(found: Found, heads: int, slstm: bool) -> str:
    shapes = {name: tensor.shape for name, tensor in found.tensors.items()}
    for name, tensor in found.tensors.items():
        if tensor.dtype not in REAL:
            return f"{name} holds {tensor.dtype}"
    first = [shapes.get(f"{name}_l0", ()) for name in ("weight_ih", "weight_hh")]
    if any(len(shape) != 2 or 0 in shape for shape in first):
        return f"weight_ih_l0 and weight_hh_l0 are not both matrices, but of shape {first[0]} and {first[1]}"
    (rows, features), (_, output) = first
    layers = 1 + max(int(match[1]) for name in shapes if (match := re.search(r"_l(\d+)(?:_reverse)?$", name)))
    if layers > min(len(shapes), MAX_LAYERS):
        return f"it names a layer {layers - 1} and has {len(shapes)} tensors"
    reasons = []
    for cell, projection, peephole, description in described(slstm):
        hidden, rest = divmod(rows, description.gates)
        if rest or (heads > 1 or hidden <= output if projection else hidden != heads * output):
            continue
        bases = {name for name, _, _ in description.parameters}
        sizes = _sizes(shapes, description, (features, hidden, layers), output if projection else 0, heads)
        wanted = description.shapes(**sizes)
        if wanted == shapes:
            found.cells.append(cell)
            found.sizes = sizes
            decided = {"peephole": peephole, "layer_norm": CELLS[cell].options.get("layer_norm", False)}
            found.said = {**found.said, **{name: True for name, is_so in decided.items() if is_so}}
            found.tensors = {name: found.tensors[name] for name in wanted}
        else:
            reasons.append((len(bases & {n.rpartition("_l")[0] for n in shapes}), _difference(shapes, wanted, cell)))
    if found.cells:
        return ""
    if heads > 1 or slstm:
        told = f"heads={heads}" if not slstm else f"heads={heads} of an sLSTM"
        return f"weight_ih_l0 {first[0]} and weight_hh_l0 {first[1]} are not those of {told}"
    if found.origin == "PyTorch" and (choices := _with_heads(shapes, (rows, features, layers), output)):
        return f"weight_hh_l0 {first[1]} is that of a layer with heads: give {'; or '.join(choices)}"
    if reasons:
        return max(reasons, key=lambda reason: reason[0])[1]
    known = ", ".join(sorted({str(d.gates) for *_, d in described()}))
    return f"weight_ih_l0 {first[0]} and weight_hh_l0 {first[1]} are of no cell that is known here, of {known} gates"


def _sizes(
    shapes: Mapping[str, Any], description: Description, inner: tuple[int, int, int], projected: int, heads: int
) -> dict[str, Any]:
    """Return all of `SIZES`, where input_size, hidden_size and num_layers are known."""
    bias = any(f"{name}_l0" in shapes for name, _, is_bias in description.parameters if is_bias)
    both = any("_reverse" in n for n in shapes)
    return dict(zip(SIZES, (*inner, bias, both, projected, heads), strict=True))


def _with_heads(shapes: Mapping[str, Any], first: tuple[int, int, int], output: int) -> list[str]:
    """Return the options with which tensors fit a layer with heads; first: rows, columns and layers."""
    rows, features, layers = first
    fits: dict[int, dict[str, None]] = {}  # classes, in order
    for cell, projection, _, description in (*described(), *described(slstm=True)):
        hidden, rest = divmod(rows, description.gates)
        if rest or projection or hidden % output or hidden <= output:
            continue
        heads = hidden // output
        if description.shapes(**_sizes(shapes, description, (features, hidden, layers), 0, heads)) == shapes:
            fits.setdefault(heads, {})[CELLS[cell].layer.__name__] = None
    choices = []
    for heads in sorted(fits):
        kinds = " or ".join(kind for kind in fits[heads] if kind != "sLSTM")
        more = ", with forget_gate for sLSTM" if "sLSTM" in fits[heads] else ""
        choices.append(f"options={{'heads': {heads}}} for {kinds}{more}")
    return choices


def _difference(shapes: Mapping[str, Any], wanted: Mapping[str, Any], cell: str) -> str:
    """Say in what a file's tensors differ from those of a cell."""
    missing = [name for name in wanted if name not in shapes]
    more = [name for name in shapes if name not in wanted]
    wrong = [
        f"{n} has shape {shapes[n]} instead of {wanted[n]}" for n in wanted if n in shapes and shapes[n] != wanted[n]
    ]
    parts = wrong[:3] + [
        f"{', '.join(names[:4])} {what}" for names, what in ((missing, "missing"), (more, "unknown")) if names
    ]
    return f"as {cell}: {'; '.join(parts)}"


# Tensors made of others


def joined(parts: list[Tensor], shape: tuple[int, ...], make: Any) -> Tensor:
    """Return a tensor that is made of others when it is loaded.

    Parameters
    ----------
    parts
        The others, which are loaded then.
    make
        Takes their arrays.
    """
    dtypes = [part.dtype for part in parts]
    odd = [dtype for dtype in dtypes if dtype not in REAL]
    dtype = odd[0] if odd else "float64" if "float64" in dtypes else dtypes[0]

    def load() -> Array:
        array: Array = make(*(part.load() for part in parts))
        return np.ascontiguousarray(array)

    return Tensor(dtype, shape, load)


def zeros_like(other: Tensor) -> Tensor:
    """Return a tensor of zeros."""
    dtype = np.float64 if other.dtype == "float64" else np.float32
    return Tensor(other.dtype, other.shape, lambda: np.zeros(other.shape, dtype))
