"""The safetensors format: a length, a JSON header of names, dtypes, shapes and places, then the numbers.

https://huggingface.co/docs/safetensors describes it.
"""

import json
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

from .errors import FileError
from .tensors import REAL, Array, Bytes, Tensor, as_array, count, not_real

MAX_HEADER = 2**24  # of 100,000 tensors; the header is parsed whole
METADATA = "__metadata__"
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_WRITTEN = {np.float64: "F64", np.float32: "F32", np.uint16: "BF16", np.int8: "I8"}
_SIZES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
}


def is_safetensors(data: Bytes) -> bool:
    """Whether a file starts as one of this format does."""
    return data.size > 8 and bytes(data[8:9]) == b"{"


def read(name: str, data: Bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file and its metadata.

    Parameters
    ----------
    name
        Of the file, for errors.
    data
        Its bytes, mapped; float32 and float64 tensors stay there.

    Raises
    ------
    FileError
        If header and file contradict each other or themselves.
    """
    length = int.from_bytes(bytes(data[:8]), "little")
    if data.size < 8 or length > data.size - 8:
        raise FileError(f"{name} is cut off or damaged: its header claims {length:,} bytes of {data.size:,}")
    if length > MAX_HEADER:
        raise FileError(f"{name} has a header of {length:,} bytes; more than {MAX_HEADER:,} are not read")
    header = parse_json(bytes(data[8 : 8 + length]), f"{name}: its header")
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FileError(f"{name}: its {METADATA} is no mapping of names to texts")
    found, places = {}, []
    for key, entry in header.items():
        who = f"{name}: its tensor {key!r}"
        dtype, shape, begin, end = _entry(entry, who)
        if dtype not in _SIZES:
            raise FileError(f"{who} has dtype {dtype!r}, which is not known here")
        if count(shape, who) * _SIZES[dtype] != end - begin:
            raise FileError(f"{who} says {dtype} of shape {shape} in {end - begin:,} bytes")
        places.append((begin, end, key))
        found[key] = _tensor(who, data[8 + length :][begin:end], dtype, shape)
    _check_places(name, places, data.size - 8 - length)
    return found, metadata


def parse_json(text: bytes, who: str) -> dict[str, Any]:
    """Return the JSON object that bytes hold, in which no name comes twice.

    Raises
    ------
    FileError
        If they hold none.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise FileError(f"{who} names something twice")
        return found

    try:
        parsed = json.loads(text, object_pairs_hook=once)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FileError(f"{who} is no JSON: {error}") from error
    except (RecursionError, ValueError) as error:  # ValueError: a number of too many digits
        if isinstance(error, FileError):
            raise
        raise FileError(f"{who} is nested too deeply or holds a number that is too long") from error
    if not isinstance(parsed, dict):
        raise FileError(f"{who} is no JSON object")
    return parsed


def _entry(entry: Any, who: str) -> tuple[str, tuple[int, ...], int, int]:
    if isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}:
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        integers = isinstance(offsets, list) and len(offsets) == 2 and all(type(n) is int for n in offsets)
        if isinstance(dtype, str) and isinstance(shape, list) and integers and 0 <= offsets[0] <= offsets[1]:
            return dtype, tuple(shape), offsets[0], offsets[1]
    raise FileError(f"{who} is not described by a dtype, a shape and two data_offsets that rise")


def _check_places(name: str, places: list[tuple[int, int, str]], size: int) -> None:
    """Each byte behind the header belongs to one tensor."""
    at = 0
    for begin, end, key in sorted(places):
        if begin != at or end > size:
            what = "reaches beyond the end of the file" if end > size else "overlaps another or leaves a hole"
            raise FileError(f"{name}: its tensor {key!r} at {begin:,} to {end:,} of {size:,} bytes {what}")
        at = end
    if at != size:
        raise FileError(f"{name} has {size - at:,} bytes that belong to no tensor")


def _tensor(who: str, data: Bytes, dtype: str, shape: tuple[int, ...]) -> Tensor:
    name = _NAMES.get(dtype, dtype)
    if dtype == "I8":  # of our own files; parameters of others are not made of it
        return Tensor("int8", shape, lambda: data.view(np.int8).reshape(shape))
    if name not in REAL:
        return Tensor(name, shape, not_real(who, dtype))
    return Tensor(name, shape, lambda: as_array(data, name, shape))


def write(file: IO[bytes], arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write float32, float64 and int8 arrays, and uint16 as bfloat16, whose bits it holds.

    The numbers start at a multiple of 64 bytes, so that they can be mapped.
    """
    names = {np.dtype(kind): word for kind, word in _WRITTEN.items()}
    # the larger type first, so that each array is aligned
    ordered = sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize)
    header: dict[str, Any] = {METADATA: dict(metadata)}
    at = 0
    for name, array in ordered:
        header[name] = {
            "dtype": names[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % 64)
    file.write(len(text).to_bytes(8, "little") + text)
    for _, array in ordered:
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        file.write(little.data)
