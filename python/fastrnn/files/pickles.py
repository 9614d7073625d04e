"""PyTorch's pickles without pickle: a machine that builds lists, dicts and descriptions of tensors, and calls nothing.

The opcodes are read by the standard library's pickletools, which only decodes. What a pickle calls becomes one of the
inert values below if it is on the list of what files of weights hold; anything else is an error that names it.
"""

import pickletools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from .errors import FileError
from .tensors import MAX_AXES

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
    def tell(self) -> int: ...


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
        for opcode, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]
            if opcode.name == "STOP":
                return Content(machine.pop(), machine.storages)
            machine.step(opcode.name, argument)
    except FileError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        # of bytes that are no opcodes, an empty stack, or values of other kinds than an opcode takes
        raise FileError(f"{who} is a damaged pickle: {error}") from error
    raise FileError(f"{who} is a damaged pickle: it has no end")


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(self, who: str, script: bool) -> None:
        self._who, self._script = who, script
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self.storages: dict[str, str] = {}

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

    def step(self, name: str, argument: Any) -> None:
        if name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _VALUES:
            self._stack.append(argument)
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        else:
            raise FileError(f"{self._who} holds the opcode {name}, which files of weights do not use")

    def put(self, key: int | None) -> None:
        self._memo[len(self._memo) if key is None else int(key)] = self._stack[-1]

    def get(self, key: int) -> None:
        self._stack.append(self._memo[int(key)])

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
        """Return a dict of keys and values in turn; the hash of a deeply nested tuple would exhaust the C stack."""
        keys = [key if isinstance(key, (str, int, float, bytes)) else object() for key in flat[::2]]
        return dict(zip(keys, flat[1::2], strict=True))

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


_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": Thing,
    "MARK": lambda: _MARK,
}
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_ACTIONS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda m, a: None,
    "FRAME": lambda m, a: None,
    "POP": lambda m, a: m.drop(),
    "POP_MARK": lambda m, a: m.drop_to_mark(),
    "DUP": lambda m, a: m.repeat(),
    "LIST": lambda m, a: m.push(m.pop_mark()),
    "TUPLE": lambda m, a: m.push(tuple(m.pop_mark())),
    "TUPLE1": lambda m, a: m.push((m.pop(),)),
    "TUPLE2": lambda m, a: m.push(tuple(reversed([m.pop(), m.pop()]))),
    "TUPLE3": lambda m, a: m.push(tuple(reversed([m.pop(), m.pop(), m.pop()]))),
    "DICT": lambda m, a: m.push(m.as_dict(m.pop_mark())),
    "FROZENSET": lambda m, a: m.make_set(),
    "APPEND": lambda m, a: m.extend([m.pop()]),
    "APPENDS": lambda m, a: m.extend(m.pop_mark()),
    "ADDITEMS": lambda m, a: m.extend(m.pop_mark()),
    "SETITEM": lambda m, a: m.set_items(list(reversed([m.pop(), m.pop()]))),
    "SETITEMS": lambda m, a: m.set_items(m.pop_mark()),
    "PUT": lambda m, a: m.put(a),
    "BINPUT": lambda m, a: m.put(a),
    "LONG_BINPUT": lambda m, a: m.put(a),
    "MEMOIZE": lambda m, a: m.put(None),
    "GET": lambda m, a: m.get(a),
    "BINGET": lambda m, a: m.get(a),
    "LONG_BINGET": lambda m, a: m.get(a),
    "GLOBAL": lambda m, a: m.find(*a.split(" ", 1)),
    "STACK_GLOBAL": lambda m, a: m.find_on_stack(),
    "BINPERSID": lambda m, a: m.persistent(),
    "REDUCE": lambda m, a: m.reduce(),
    "NEWOBJ": lambda m, a: m.reduce(),
    "BUILD": lambda m, a: m.build(),
}
