"""The types of values that go from one part of a cut graph to the next, in ONNX Runtime's words and in ONNX's."""

from typing import Any

import onnx

from .views import Sizes

# The names of element types in ONNX Runtime's strings, say "tensor(float)": those of ONNX in lower case.
_ELEMENTS = {name.lower(): number for name, number in onnx.TensorProto.DataType.items() if number}
_NAMES = {number: name for name, number in _ELEMENTS.items()}


class CutError(Exception):
    """A graph that cannot be cut; the message says why."""


def tensor_type(element: int, sizes: Sizes = None) -> Any:
    """Return the TypeProto of a tensor."""
    return onnx.helper.make_tensor_type_proto(element, sizes)


def from_words(words: str, sizes: Sizes) -> Any:
    """Return the TypeProto for what ONNX Runtime calls a type; None for one that cannot be passed on."""
    kind, _, rest = words.partition("(")
    inner = rest.removesuffix(")")
    if kind == "tensor" and inner in _ELEMENTS:
        return tensor_type(_ELEMENTS[inner], sizes)
    if kind == "seq":
        element = from_words(inner, None)
        return None if element is None else onnx.helper.make_sequence_type_proto(element)
    return None


def to_words(kind: Any) -> str:
    """Return what ONNX Runtime calls the type of a TypeProto."""
    if kind is not None and kind.HasField("tensor_type"):
        return f"tensor({_NAMES.get(kind.tensor_type.elem_type, 'unknown')})"
    if kind is not None and kind.HasField("sequence_type"):
        return f"seq({to_words(kind.sequence_type.elem_type)})"
    if kind is not None and kind.HasField("optional_type"):
        return f"optional({to_words(kind.optional_type.elem_type)})"
    return "unknown"


def dtype_of(kind: Any) -> Any:
    """Return NumPy's dtype of a tensor's TypeProto; None for strings, unknown types and what is no tensor."""
    element = element_of(kind)
    if element not in _NAMES or element == onnx.TensorProto.STRING:
        return None
    return onnx.helper.tensor_dtype_to_np_dtype(element)


def sizes_of(kind: Any) -> Sizes:
    """Return the sizes in a TypeProto; None where it says nothing of them."""
    if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    return [_size_of(size) for size in kind.tensor_type.shape.dim]


def _size_of(size: Any) -> int | str | None:
    """One of them; a negative one says as little as none, as in ONNX Runtime."""
    if size.HasField("dim_value"):
        return int(size.dim_value) if size.dim_value >= 0 else None
    return size.dim_param or None


def element_of(kind: Any) -> int | None:
    """Return the element type of a tensor's TypeProto, None of another."""
    return kind.tensor_type.elem_type if kind is not None and kind.HasField("tensor_type") else None


def refuse_foreign(name: str, kind: Any) -> None:
    """Refuse a value that Python and ONNX Runtime cannot hand each other: its type is none of NumPy's own.

    Raises
    ------
    CutError
    """
    while kind is not None and kind.HasField("sequence_type"):
        kind = kind.sequence_type.elem_type
    dtype = dtype_of(kind)
    if dtype is not None and dtype.isbuiltin != 1:
        raise CutError(f"ONNX Runtime neither takes nor gives values of type {dtype} from Python, as {name!r} would be")


def is_onnxruntimes(error: Exception) -> bool:
    """Whether it is one of ONNX Runtime's own errors, which are of no common class."""
    return type(error).__module__.partition(".")[0] == "onnxruntime"


def is_complete(kind: Any) -> bool:
    """Whether a TypeProto says enough to declare an input with it."""
    return kind is not None and "unknown" not in to_words(kind) and not to_words(kind).startswith("optional")
