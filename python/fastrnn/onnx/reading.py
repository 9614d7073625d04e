"""ONNX models from files and memory: what is needed is checked before it is believed, and named when it is wrong."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, EncodeError

from ..checks import readable as in_words
from ..storage import FileError

_PACKED = {"int4": 4, "uint4": 4, "float4_e2m1fn": 4, "int2": 2, "uint2": 2}  # bits where several share a byte
MOST_NODES = 1_000_000  # of a model whose functions were written out
MOST_BYTES = 2**28  # that writing them out may add
DEEPEST = 200  # functions and graphs inside each other
MOST_SHARED = 4  # how often all tensors together may read what one file holds: tied weights name the same bytes


def read_model(model: Any, who: str) -> tuple[Any, str]:
    """Return a ModelProto with all its data, its functions written out, and the name that errors call it by.

    Parameters
    ----------
    model : ModelProto, str, PathLike or bytes
        A model, the file of one, or what stands in such a file. Data in other files have to lie beside the file.
    who
        The function that was called.

    Raises
    ------
    FileError
        If it is no ONNX model, or one that contradicts itself.
    TypeError
        If model is something else.
    OSError
        If it cannot be read.
    """
    folder = None
    if isinstance(model, onnx.ModelProto):
        name, found = "the model", onnx.ModelProto()
        found.CopyFrom(model)
    elif isinstance(model, (str, os.PathLike, bytes)):
        name = "the model" if isinstance(model, bytes) else os.fspath(model)
        data = model if isinstance(model, bytes) else Path(model).read_bytes()
        folder = None if isinstance(model, bytes) else os.path.dirname(os.path.abspath(name))
        found = _parsed(data, name)
    else:
        raise TypeError(f"{who} takes a ModelProto, the path of an ONNX file or its bytes, got {type(model).__name__}.")
    if not found.HasField("graph") or not found.graph.node:
        raise FileError(f"{name} is no ONNX model: it has no graph with nodes")
    _refuse_no_text(found, name)
    with readable(name):
        beside = _Beside(folder, name)
        for tensor in tensors(found):
            beside.load(tensor)
        if found.functions:
            found = _without_functions(found, name)
    return found, name


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Let text that is no text, in a damaged model, and what protobuf cannot write name the model."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise FileError(f"{name} is damaged: it holds text that is not UTF-8: {error}") from error
    except EncodeError as error:
        raise _too_large(name, error) from error


def serialised(model: Any, who: str) -> bytes:
    """The bytes of a model.

    Raises
    ------
    FileError
        If they are more than protobuf writes.
    """
    try:
        data: bytes = model.SerializeToString()
    except (ValueError, EncodeError) as error:
        raise _too_large(who, error) from error
    return data


def _too_large(who: str, error: Exception) -> FileError:
    return FileError(f"{who} is too large for protobuf, which writes no more than 2 GB: {error}")


def _refuse_no_text(model: Any, name: str) -> None:
    """Refuse names that are not UTF-8, which protobuf hands out as bytes."""
    nodes = [node for function in model.functions for node in function.node]
    inner = [graph for node in nodes for one in subgraphs(node) for graph in graphs(one)]
    for graph in [*graphs(model.graph), *inner]:
        nodes += graph.node
        for value in (*graph.input, *graph.output, *graph.initializer, *(s.values for s in graph.sparse_initializer)):
            _refuse_bytes(name, value.name)
        for value in (*graph.input, *graph.output):
            _refuse_bytes(name, *_sizes_by_name(value.type))
    for function in model.functions:
        _refuse_bytes(name, function.name, function.domain, *function.input, *function.output)
    for node in nodes:
        words = [one.name for one in node.attribute]
        _refuse_bytes(name, node.name, node.op_type, node.domain, *node.input, *node.output, *words)
    _refuse_bytes(name, *(one.domain for one in model.opset_import))


def _sizes_by_name(kind: Any) -> Iterator[Any]:
    """The names of sizes in a TypeProto."""
    for word in ("sequence_type", "optional_type"):
        if kind.HasField(word):
            yield from _sizes_by_name(getattr(kind, word).elem_type)
    yield from (size.dim_param for size in kind.tensor_type.shape.dim)


def _refuse_bytes(name: str, *words: Any) -> None:
    for word in words:
        if isinstance(word, bytes):
            raise FileError(f"{name} is damaged: it holds a name that is not UTF-8, {word[:50]!r}")


def _parsed(data: bytes, name: str) -> Any:
    try:
        return onnx.ModelProto.FromString(data)
    except (DecodeError, RecursionError) as error:
        raise FileError(f"{name} is no ONNX model, or damaged: {error}") from error


# Walking


def subgraphs(node: Any) -> Iterator[Any]:
    """The graphs among the attributes of a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def graphs(graph: Any) -> Iterator[Any]:
    """A graph and all graphs inside it."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from graphs(inner)


def tensors(model: Any) -> Iterator[Any]:
    """All tensors of a model: initializers, sparse ones, and those in attributes, functions included."""
    for graph in graphs(model.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        yield from _in_attributes(graph.node)
    for function in model.functions:
        yield from _in_attributes(function.node)
        for node in function.node:
            for inner in subgraphs(node):
                for graph in graphs(inner):
                    yield from graph.initializer
                    yield from _in_attributes(graph.node)


def _in_attributes(nodes: Iterable[Any]) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def free_names(node: Any) -> list[str]:
    """What a node reads: its inputs, and what graphs inside it read of the graphs around them."""
    found = dict.fromkeys(name for name in node.input if name)
    for graph in subgraphs(node):
        found |= dict.fromkeys(unbound(graph))
    return list(found)


def unbound(graph: Any) -> list[str]:
    """The names that a graph reads and does not define, so those of the graphs around it."""
    known = {i.name for i in graph.input} | {i.name for i in graph.initializer}
    known |= {s.values.name for s in graph.sparse_initializer}
    known |= {name for node in graph.node for name in node.output}
    read = [name for node in graph.node for name in free_names(node)] + [o.name for o in graph.output]
    return list(dict.fromkeys(name for name in read if name not in known))


def label(node: Any) -> str:
    """The name of a node; where it has none, its first output's."""
    return str(node.name) or next((name for name in node.output if name), node.op_type)


def opset(model: Any) -> int:
    """The version of the operators of ONNX that a model uses."""
    versions = [int(one.version) for one in model.opset_import if one.domain in ("", "ai.onnx")]
    newest: int = max(versions, default=1)
    return newest


def attributes(node: Any) -> dict[str, Any]:
    """The attributes of a node as plain values."""
    return {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}


def ordered(graph: Any, name: str) -> list[Any]:
    """The nodes of a graph, each behind those whose outputs it reads.

    Raises
    ------
    FileError
        If two nodes write the same name, or nodes wait for each other.
    """
    maker: dict[str, int] = {}
    for k, node in enumerate(graph.node):
        for output in filter(None, node.output):
            if output in maker:
                raise FileError(
                    f"{name}: the nodes {label(graph.node[maker[output]])} and {label(node)} write {output!r}"
                )
            maker[output] = k
    needs = [dict.fromkeys(maker[read] for read in free_names(node) if read in maker) for node in graph.node]
    order: list[int] = []
    state = bytearray(len(needs))  # 1: on the path, 2: done
    for start in range(len(needs)):
        path = [] if state[start] else [(start, iter(needs[start]))]
        while path:
            k, waiting = path[-1]
            state[k] = 1
            following = next((one for one in waiting if state[one] != 2), None)
            if following is None:
                state[k] = 2
                order.append(k)
                path.pop()
            elif state[following] == 1:
                what = f"the node {label(graph.node[following])} waits for its own output"
                raise FileError(f"{name}: {what}: the graph has a cycle")
            else:
                path.append((following, iter(needs[following])))
    return [graph.node[k] for k in order]


# Data in other files


class _Beside:
    """The files beside a model that hold data of its tensors.

    Parameters
    ----------
    folder
        The model's; None if it came without a file.
    name
        What errors call the model.
    """

    def __init__(self, folder: str | None, name: str) -> None:
        self._folder, self._name = folder, name
        self._taken: dict[str, int] = {}  # bytes by file

    def load(self, tensor: Any) -> None:
        """Read a tensor's data from the file that it names into the tensor itself."""
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return
        where = {entry.key: entry.value for entry in tensor.external_data}
        _refuse_bytes(self._name, *where, *where.values())
        location, who = where.get("location", ""), f"{self._name}: the data of {tensor.name!r}"
        path = self._path(location, who)
        size = os.path.getsize(path)
        try:
            offset = int(where.get("offset", 0))
            wanted = _nbytes(tensor)
            length = int(where.get("length", wanted))
        except (ValueError, KeyError, TypeError) as error:
            raise FileError(f"{who} cannot be read: {error}") from error
        if length != wanted or offset < 0 or offset + length > size:
            raise FileError(f"{who} need {wanted} bytes; they are said to be {length} from byte {offset} on of {size}")
        self._taken[path] = self._taken.get(path, 0) + length
        if self._taken[path] > MOST_SHARED * size:
            many = f"{self._taken[path]:,} bytes of {location!r}, which holds {size:,}"
            raise FileError(f"{who}: with them the model's tensors take {many}")
        with open(path, "rb") as file:
            file.seek(offset)
            tensor.raw_data = file.read(length)
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]

    def _path(self, location: str, who: str) -> str:
        """Where the file lies that is called so; never outside the folder."""
        if self._folder is None:
            raise FileError(f"{who} are in another file, {location!r}: give the path of the model instead")
        folder = os.path.realpath(self._folder)
        try:
            path = os.path.realpath(os.path.join(folder, location))
        except ValueError as error:  # a null byte
            raise FileError(f"{who} are in {location!r}, which is no name of a file: {error}") from error
        if os.path.isabs(location) or os.path.commonpath([path, folder]) != folder:
            raise FileError(f"{who} are in {location!r}, outside the model's folder; files there are not read")
        if not os.path.isfile(path):
            raise FileError(f"{who} are in {location!r}, and there is no such file beside the model")
        if path == os.path.realpath(self._name):
            raise FileError(f"{who} are in {location!r}, which is the model itself")
        return path


def _nbytes(tensor: Any) -> int:
    """The bytes that a tensor's sizes and type ask for."""
    if any(size < 0 for size in tensor.dims):
        raise ValueError(f"its sizes are {list(tensor.dims)}")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    bits: int = _PACKED.get(dtype.name, dtype.itemsize * 8)
    nbytes: int = -(-math.prod(tensor.dims) * bits // 8)
    return nbytes


# Functions


def _without_functions(model: Any, name: str) -> Any:
    """Write the model's own functions out at the places that call them."""
    bodies = {(f.domain, f.name): f for f in model.functions}
    sizes: dict[tuple[str, str], tuple[int, int]] = {}  # nodes and bytes of what a call becomes

    def size(nodes: Iterable[Any], inside: Sequence[tuple[str, str]], depth: int) -> tuple[int, int]:
        """How many nodes these become, and at most how many bytes are added for the functions that they call."""
        if depth > DEEPEST:
            raise FileError(f"{name}: its functions and graphs stand inside each other more than {DEEPEST} deep")
        count = added = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            if key in inside:
                raise FileError(f"{name}: the function {node.op_type} calls itself")
            if key in bodies and key not in sizes:
                body = bodies[key].node
                inner, more = size(body, (*inside, key), depth + 1)
                sizes[key] = inner, more + sum(one.ByteSize() for one in body)
            n, nbytes = sizes.get(key, (1, 0))
            # any of the nodes may get the attributes and names of the call
            added += nbytes + n * node.ByteSize() if key in sizes else 0
            count += n
            for graph in subgraphs(node):
                inner, more = size(graph.node, inside, depth + 1)
                count, added = count + inner, added + more
        return count, added

    count, added = size(model.graph.node, (), 0)
    if count > MOST_NODES:
        raise FileError(f"{name}: with its functions written out it has more than {MOST_NODES:,} nodes")
    if added > MOST_BYTES:
        raise FileError(f"{name}: with its functions written out it is larger by more than {in_words(MOST_BYTES)}")
    import onnx.inliner

    return onnx.inliner.inline_local_functions(model)
