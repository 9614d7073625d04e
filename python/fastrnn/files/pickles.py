"""PyTorch's pickles without pickle: a machine that builds lists, dicts and descriptions of tensors, and calls nothing.

It knows the opcodes of protocols 2 to 4 that files of weights hold; the standard library's pickletools describes each.
What a pickle calls becomes one of the inert values below if it is on the list of what files of weights hold; anything
else is an error that names it.
"""

import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from .errors import FileError
from .tensors import LONGEST, MAX_AXES

_LARGEST_KEY = 2**60  # of a dict; from 2**61 - 1 on, numbers share their hashes with smaller ones

_STORAGES = {
    f"{name}Storage": dtype
    for name, dtype in {
        "Float": "float32",
        "Double": "float64",
        "Half": "float16",
        "BFloat16": "bfloat16",
        "Long": "int64",
        "Int": "int32",
        "Short": "int16",
        "Char": "int8",
        "Byte": "uint8",
        "Bool": "bool",
        "ComplexFloat": "complex64",
        "ComplexDouble": "complex128",
    }.items()
}
# What training programs put beside weights; kept as names, so that the weights beside it can be read.
_INERT = {
    "builtins": {"set", "frozenset", "dict", "list", "tuple", "int", "float", "complex", "bool", "str", "slice"},
    "collections": {"OrderedDict", "defaultdict", "Counter"},
    "argparse": {"Namespace"},
    "_codecs": {"encode"},
    "numpy": {"dtype", "ndarray"},
    "numpy.core.multiarray": {"scalar", "_reconstruct"},
    "numpy._core.multiarray": {"scalar", "_reconstruct"},
    "torch": {"Size", "device", "Tensor", *_STORAGES},
    "torch.nn.parameter": {"Parameter"},
    "torch.jit._pickle": {
        "build_intlist",
        "build_doublelist",
        "build_boollist",
        "build_tensorlist",
        "restore_type_tag",
    },
    "torch._utils": {
        *("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state"),
    },
}
_INERT["__builtin__"] = _INERT["builtins"]
_DTYPES = {"float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool"}
_INERT["torch"] |= _DTYPES


class Global(NamedTuple):
    """The name of something that a pickle would import."""

    module: str
    name: str


class Storage(NamedTuple):
    """Memory that tensors lie in, by its key in the file."""

    dtype: str
    key: str
    size: int  # elements


class StoredTensor(NamedTuple):
    """A view into a storage, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Thing:
    """Any other object: what it was called with is not kept, its state is."""

    def __init__(self) -> None:
        self.state: Any = None


class _Mark:
    pass


_MARK = _Mark()


class Stream(Protocol):
    """What pickletools reads from."""

    def read(self, size: int, /) -> bytes: ...
    def readline(self) -> bytes: ...


class Content(NamedTuple):
    """What one pickle holds."""

    value: Any  # its tensors as `StoredTensor`
    storages: dict[str, str]  # the dtype of each storage it names, by key


def read(stream: Stream, who: str, script: bool = False) -> Content:
    """Return what one pickle holds.

    Parameters
    ----------
    stream
        From where the pickle begins; it is left behind its end.
    who
        The subject of errors.
    script
        Whether the classes of a TorchScript archive may be named.

    Raises
    ------
    FileError
        If it is no pickle, or names something that files of weights do not hold.
    """
    machine = _Machine(who, script)
    try:
        while True:
            code = stream.read(1)
            if code == b".":
                return Content(machine.pop(), machine.storages)
            if code not in _OPCODES:
                what = f"holds the opcode {code!r}, which files of weights do not use" if code else "has no end"
                raise FileError(f"{who} is a damaged pickle: it {what}")
            machine.steps += 1
            argument, act = _OPCODES[code]
            act(machine, argument(stream))
    except FileError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error) as error:
        # an empty stack, an argument that is cut off, or values of other kinds than an opcode takes
        raise FileError(f"{who} is a damaged pickle: {error}") from error


# The arguments of opcodes, read from the stream


def _none(_: Stream) -> None:
    return None


def _exactly(stream: Stream, size: int) -> bytes:
    read = stream.read(size)
    if len(read) < size:
        raise ValueError(f"it ends where {size:,} bytes should follow")
    return read


def _number(form: str) -> Callable[[Stream], Any]:
    return lambda stream: struct.unpack(form, _exactly(stream, struct.calcsize(form)))[0]


def _sized(form: str, decode: Callable[[bytes], Any]) -> Callable[[Stream], Any]:
    size = _number(form)
    return lambda stream: decode(_exactly(stream, size(stream)))


def _text(read: bytes) -> str:
    return read.decode("utf-8", "surrogatepass")


def _old_text(read: bytes) -> str:
    return read.decode("latin-1")


def _long(read: bytes) -> int:
    return int.from_bytes(read, "little", signed=True)


def _two_lines(stream: Stream) -> tuple[str, str]:
    module, name = (stream.readline() for _ in range(2))
    if not (module.endswith(b"\n") and name.endswith(b"\n")):
        raise ValueError("it ends within a name")
    return module[:-1].decode(), name[:-1].decode()


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(self, who: str, script: bool) -> None:
        self._who, self._script = who, script
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self.storages: dict[str, str] = {}
        self.steps = 0  # opcodes so far, each of which makes one value at most
        self._copied = 0  # items of dicts that were made of lists

    def pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise FileError(f"{self._who} is a damaged pickle: a mark where a value should be")
        return value

    def pop_mark(self) -> list[Any]:
        at = len(self._stack) - 1
        while self._stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise FileError(f"{self._who} is a damaged pickle: a mark is missing")
        values = self._stack[at + 1 :]
        del self._stack[at:]
        return values

    def put(self, key: int | None) -> None:
        self._memo[len(self._memo) if key is None else key] = self._stack[-1]

    def get(self, key: int) -> None:
        self._stack.append(self._memo[key])

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def drop(self) -> None:
        self._stack.pop()

    def drop_to_mark(self) -> None:
        self.pop_mark()

    def make_set(self) -> None:
        self.pop_mark()
        self._stack.append(Thing())

    def repeat(self) -> None:
        self._stack.append(self._stack[-1])

    def extend(self, values: Iterable[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Thing):
            raise FileError(f"{self._who} is a damaged pickle: it appends to something that is no list")

    def set_items(self, pairs: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, (dict, Thing)):
            raise FileError(f"{self._who} is a damaged pickle: it sets items of something that is no dict")
        if isinstance(target, dict):
            target.update(self.as_dict(pairs))

    def as_dict(self, flat: list[Any]) -> dict[Any, Any]:
        """Return a dict of keys and values in turn, those of other keys than files of weights hold under no name.

        The hash of a deeply nested tuple would exhaust the C stack, and whole numbers can be chosen to have one hash.
        """
        for key in flat[::2]:
            if isinstance(key, (str, bytes)) and len(key) > LONGEST:
                raise FileError(f"{self._who} has a key of {len(key):,} characters; {LONGEST} are the most")
        return dict(zip(map(_as_key, flat[::2]), flat[1::2], strict=True))

    def find(self, module: str, name: str) -> None:
        known = name in _INERT.get(module, ())
        if not known and not (self._script and module.partition(".")[0] == "__torch__"):
            fix = "Weights alone are what torch.save(model.state_dict(), path) writes."
            raise FileError(
                f"{self._who} calls {module}.{name}, which is not on the list of what files of weights hold; nothing "
                f"was run. {fix}"
            )
        self._stack.append(Global(module, name))

    def find_on_stack(self) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise FileError(f"{self._who} is a damaged pickle: a name is no text")
        self.find(module, name)

    def persistent(self) -> None:
        """Push what a persistent id stands for: of PyTorch's, a storage."""
        given = self.pop()
        if isinstance(given, tuple) and len(given) in (5, 6) and given[0] == "storage":
            _, kind, key, _, size, *view = given
            fine = isinstance(kind, Global) and isinstance(key, (str, int)) and type(size) is int and size >= 0
            if fine and view in ([], [None]) and kind.name in _STORAGES:
                storage = Storage(_STORAGES[kind.name], str(key), size)
                self.storages[storage.key] = storage.dtype
                self._stack.append(storage)
                return
        raise FileError(f"{self._who} refers to something beside it that is no storage of a tensor")

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(arguments, tuple) or not isinstance(function, Global):
            raise FileError(f"{self._who} calls something that has no name")
        self._stack.append(self._called(function, arguments))

    def _called(self, function: Global, arguments: tuple[Any, ...]) -> Any:
        name = function.name
        if name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return self._tensor(arguments)
        if name in ("_rebuild_parameter", "_rebuild_parameter_with_state") or function.module == "torch.jit._pickle":
            return arguments[0]
        if name in ("OrderedDict", "defaultdict", "Counter"):
            pairs = arguments[0] if name == "OrderedDict" and arguments else []
            self._copied += len(pairs)
            if self._copied > self.steps:
                raise FileError(f"{self._who} is a damaged pickle: it makes dicts of one list again and again")
            return self.as_dict([value for key, item in pairs for value in (key, item)])
        return Thing()

    def _tensor(self, arguments: tuple[Any, ...]) -> StoredTensor:
        storage, offset, shape, strides = arguments[:4]
        few = all(isinstance(axes, tuple) and len(axes) <= MAX_AXES for axes in (shape, strides))
        numbers = (offset, *shape, *strides) if few and len(shape) == len(strides) else (-1,)
        if not isinstance(storage, Storage) or not all(type(n) is int and 0 <= n < 2**62 for n in numbers):
            raise FileError(f"{self._who} describes a tensor that has no storage, or numbers that are none")
        return StoredTensor(storage, offset, shape, strides)

    def build(self) -> None:
        state, target = self.pop(), self._stack[-1]
        if isinstance(target, Thing):
            target.state = state


def _as_key(key: Any) -> Any:
    if isinstance(key, int):
        return key if -_LARGEST_KEY < key < _LARGEST_KEY else object()
    return key if isinstance(key, (str, float, bytes)) else object()


def _push(machine: _Machine, value: Any) -> None:
    machine.push(value)


# by the byte of each opcode: what reads its argument, and what it does
_OPCODES: Mapping[bytes, tuple[Callable[[Stream], Any], Callable[[_Machine, Any], None]]] = {
    # PROTO, FRAME
    b"\x80": (_number("<B"), lambda m, a: None),
    b"\x95": (_number("<Q"), lambda m, a: None),
    # values: NONE, NEWTRUE, NEWFALSE, BININT, BININT1, BININT2, LONG1, LONG4, BINFLOAT
    b"N": (_none, _push),
    b"\x88": (lambda s: True, _push),
    b"\x89": (lambda s: False, _push),
    b"J": (_number("<i"), _push),
    b"K": (_number("<B"), _push),
    b"M": (_number("<H"), _push),
    b"\x8a": (_sized("<B", _long), _push),
    b"\x8b": (_sized("<I", _long), _push),
    b"G": (_number(">d"), _push),
    # BINSTRING, SHORT_BINSTRING, BINBYTES, SHORT_BINBYTES, BINBYTES8, BINUNICODE, SHORT_BINUNICODE, BINUNICODE8
    b"T": (_sized("<I", _old_text), _push),
    b"U": (_sized("<B", _old_text), _push),
    b"B": (_sized("<I", bytes), _push),
    b"C": (_sized("<B", bytes), _push),
    b"\x8e": (_sized("<Q", bytes), _push),
    b"X": (_sized("<I", _text), _push),
    b"\x8c": (_sized("<B", _text), _push),
    b"\x8d": (_sized("<Q", _text), _push),
    # EMPTY_LIST, EMPTY_TUPLE, EMPTY_DICT, EMPTY_SET, MARK
    b"]": (lambda s: [], _push),
    b")": (lambda s: (), _push),
    b"}": (lambda s: {}, _push),
    b"\x8f": (lambda s: Thing(), _push),
    b"(": (lambda s: _MARK, _push),
    # POP, POP_MARK, DUP
    b"0": (_none, lambda m, a: m.drop()),
    b"1": (_none, lambda m, a: m.drop_to_mark()),
    b"2": (_none, lambda m, a: m.repeat()),
    # LIST, TUPLE, TUPLE1, TUPLE2, TUPLE3, DICT, FROZENSET
    b"l": (_none, lambda m, a: m.push(m.pop_mark())),
    b"t": (_none, lambda m, a: m.push(tuple(m.pop_mark()))),
    b"\x85": (_none, lambda m, a: m.push((m.pop(),))),
    b"\x86": (_none, lambda m, a: m.push(tuple(reversed([m.pop(), m.pop()])))),
    b"\x87": (_none, lambda m, a: m.push(tuple(reversed([m.pop(), m.pop(), m.pop()])))),
    b"d": (_none, lambda m, a: m.push(m.as_dict(m.pop_mark()))),
    b"\x91": (_none, lambda m, a: m.make_set()),
    # APPEND, APPENDS, ADDITEMS, SETITEM, SETITEMS
    b"a": (_none, lambda m, a: m.extend([m.pop()])),
    b"e": (_none, lambda m, a: m.extend(m.pop_mark())),
    b"\x90": (_none, lambda m, a: m.extend(m.pop_mark())),
    b"s": (_none, lambda m, a: m.set_items(list(reversed([m.pop(), m.pop()])))),
    b"u": (_none, lambda m, a: m.set_items(m.pop_mark())),
    # the memo: BINPUT, LONG_BINPUT, MEMOIZE, BINGET, LONG_BINGET
    b"q": (_number("<B"), lambda m, a: m.put(a)),
    b"r": (_number("<I"), lambda m, a: m.put(a)),
    b"\x94": (_none, lambda m, a: m.put(a)),
    b"h": (_number("<B"), lambda m, a: m.get(a)),
    b"j": (_number("<I"), lambda m, a: m.get(a)),
    # what would call: GLOBAL, STACK_GLOBAL, BINPERSID, REDUCE, NEWOBJ, BUILD
    b"c": (_two_lines, lambda m, a: m.find(*a)),
    b"\x93": (_none, lambda m, a: m.find_on_stack()),
    b"Q": (_none, lambda m, a: m.persistent()),
    b"R": (_none, lambda m, a: m.reduce()),
    b"\x81": (_none, lambda m, a: m.reduce()),
    b"b": (_none, lambda m, a: m.build()),
}
