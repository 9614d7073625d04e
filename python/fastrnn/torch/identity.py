"""How a module passes for the one of torch.nn that it stands in for: isinstance, pickle, and classes made of classes.

A class derived from nn.LSTM would be refused by torch.compile. So the type of an accelerated module is one of ours,
and its ``__class__``, which isinstance asks as well, answers with the class that it had. Only while PyTorch compiles it
is what it is.
"""

import copy
import copyreg
import inspect
import types
import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from .bits import Bits
from .guards import NO_TORCHSCRIPT, computes_on, traced_for_onnx

_set_class = object.__dict__["__class__"].__set__
_STAND_INS: dict[type[nn.Module], type[nn.Module]] = {}  # by the class that they stand in for
_MADE: weakref.WeakValueDictionary[type, type] = weakref.WeakValueDictionary()  # the same, of users' classes


def _class(self: "StandIn") -> type:
    kind = type(self)
    if torch._guards.CompileContext.current_compile_id() is not None:
        return kind
    answer: type = vars(kind).get("_face") or vars(kind).get("_was", kind)
    return answer


def _set(self: "StandIn", kind: type) -> None:
    """Take another class, as parametrizations and FSDP give; what was torch.nn's in it is ours, until `give_back`.

    The parameters of such a class are made anew in each call, FSDP's at the same address and with the same version:
    nothing that was packed would be known to be old.
    """
    if is_dynamic(kind):
        self.__dict__.pop("_bits", None)
    _set_class(self, stand_in(kind) if kind in _STAND_INS or is_dynamic(kind) else kind)


class _Face(type):
    """The class of classes derived from torch.nn's that a module of a dynamic class answers with; whoever gives such a
    class an attribute means that of the module."""

    _real: type

    def __setattr__(cls, name: str, value: Any) -> None:
        setattr(cls._real, name, value)

    def __delattr__(cls, name: str) -> None:
        delattr(cls._real, name)


class StandIn:
    """A module of ours. A class that stands in for another one has it as its own ``_was``."""

    _original: type[nn.Module]  # torch.nn's
    _was: type
    _fallback = False  # whether tensors where fastrnn cannot compute go to torch.nn's own forward
    _bits: Bits | None = None  # what inference computes with in place of the parameters
    __class__ = property(_class, _set)

    def __init_subclass__(cls, **options: Any) -> None:
        super(StandIn, cls).__init_subclass__(**options)  # noqa: UP008 (super() would take __class__ for the class)
        original = vars(cls).get("_original")
        if original is not None:
            _STAND_INS[original] = cls
            cls._was = original

    def __reduce_ex__(self, protocol: Any) -> Any:
        kind = type(self)
        was = kind if kind in _STAND_INS.values() else vars(kind).get("_was", kind)
        return remade(super(StandIn, self).__reduce_ex__(protocol), _anew, was)  # noqa: UP008

    def _elsewhere(self, input: Any) -> bool:
        """Whether torch.nn's own forward is to run: for ONNX, or where fastrnn cannot compute and was asked to."""
        if traced_for_onnx():
            return True
        data = input.data if isinstance(input, PackedSequence) else input
        return self._fallback and not computes_on(data.device)

    def __prepare_scriptable__(self) -> Any:
        raise RuntimeError(NO_TORCHSCRIPT)

    @property
    def qconfig(self) -> Any:
        """What torch.ao.quantization sets on all modules of a model; it exchanges those of torch.nn only."""
        try:
            return self.__dict__["qconfig"]
        except KeyError:
            raise AttributeError("qconfig") from None

    @qconfig.setter
    def qconfig(self, value: Any) -> None:
        name = type(self).__name__
        warnings.warn(
            f"{name} computed by fastrnn is not quantized, it stays as it is: call fastrnn.torch.restore(model) before "
            "quantizing the model",
            stacklevel=4,
        )
        self.__dict__["qconfig"] = value

    @qconfig.deleter
    def qconfig(self) -> None:
        self.__dict__.pop("qconfig", None)


def remade(reduced: Any, anew: Callable[[Any], Any], was: type) -> Any:
    """Let what pickle and copies make of a module of a class made here begin with the class that it was made from."""
    make, given, *state = reduced
    if make is copyreg.__newobj__:  # type: ignore[attr-defined]
        make, given = anew, (was,)
    return make, given, *state


def derived(kind: type, bases: tuple[type, ...], own: Mapping[str, Any]) -> type:
    """Make a class that goes by another one's name, of which it is ``_was``."""
    named = {key: vars(kind)[key] for key in ("__module__", "__qualname__", "__doc__") if key in vars(kind)}
    return types.new_class(kind.__name__, bases, exec_body=lambda space: space.update({**named, **own, "_was": kind}))


def _anew(kind: Any) -> Any:
    """A module without attributes, for pickle and copies."""
    if not issubclass(kind, StandIn):
        kind = stand_in(kind)
    return kind.__new__(kind)


def take(module: nn.Module) -> None:
    """Let one of our classes compute a module."""
    module.__class__ = stand_in(type(module))


def give_back(module: nn.Module) -> None:
    """Give a module that one of our classes computes the class back that it had."""
    kind = type(module)
    if not issubclass(kind, StandIn) or not ("_was" in vars(kind) or is_dynamic(kind)):
        return
    module.__dict__.pop("_fallback", None)
    module.__dict__.pop("_bits", None)
    _set_class(module, _given_back(kind))


def _given_back(kind: type) -> type:
    if "_was" in vars(kind):
        original: type = vars(kind)["_was"]
        return original
    return _made_anew(kind, _given_back) if issubclass(kind, StandIn) else kind


def _made_anew(kind: type, change: Callable[[type], type]) -> type:
    """A dynamic class with other bases."""
    own = {key: value for key, value in vars(kind).items() if key not in ("__dict__", "__weakref__", "_face")}
    if getattr(own.get("__deepcopy__"), "__name__", "") == "default_deepcopy":
        own["__deepcopy__"] = _deepcopy  # PyTorch's makes an object of the class that __class__ answers
    bases = tuple(map(change, kind.__bases__))
    return types.new_class(kind.__name__, bases, exec_body=lambda space: space.update(own))


def is_dynamic(kind: type) -> bool:
    """Whether PyTorch made a class for one module, as parametrizations and FSDP do, and kept its forward."""
    return kind.__module__.startswith("torch.") and kind not in _STAND_INS and "forward" not in vars(kind)


def original_of(kind: type) -> type[nn.Module] | None:
    """Return the class of torch.nn that this one is, or is derived from."""
    return next((base for base in kind.__mro__ if base in _STAND_INS), None)


def stand_in(kind: type) -> type:
    """Return the class that does with fastrnn what this one, of torch.nn or derived from one of it, does."""
    if kind in _STAND_INS:
        return _STAND_INS[kind]
    original = original_of(kind)
    if issubclass(kind, StandIn) or original is None:
        return kind
    if is_dynamic(kind):
        made = _made_anew(kind, stand_in)
        if issubclass(made, original):
            return made
        face = _Face(kind.__name__, kind.__bases__, {"__module__": kind.__module__, "_real": made})
        type.__setattr__(made, "_face", face)
        return made
    if kind not in _MADE:
        # forward is sought in the user's class, then in ours, then in torch.nn's
        _MADE[kind] = derived(kind, (kind, _before(original)), {})
    return _MADE[kind]


def obstacle(kind: type) -> str | None:
    """Return what in a class derived from one of torch.nn's keeps ours from computing it."""
    original = original_of(kind)
    assert original is not None
    derived = f"{kind.__name__} is derived from torch.nn.{original.__name__}, and"
    for base in kind.__mro__[: kind.__mro__.index(original)]:
        for name, value in vars(base).items():
            if name == "forward" and not _calls_super(value):
                return f"{derived} its forward does not call super().forward"
            if name in _PARTS:
                return f"{derived} has its own {name}"
    return None


# methods of torch.nn's that a call goes through, and ours does not
_PARTS = {
    *("check_forward_args", "check_input", "check_hidden_size", "get_expected_hidden_size", "get_expected_cell_size"),
    *("permute_hidden", "__call__", "_call_impl", "__class__", "__reduce_ex__"),
}


def _calls_super(forward: Any) -> bool:
    code = getattr(inspect.unwrap(forward), "__code__", None)
    codes = [] if code is None else [code]
    for one in codes:
        codes += [c for c in one.co_consts if isinstance(c, types.CodeType)]
    names = {name for one in codes for name in one.co_names}
    return {"super", "forward"} <= names


def _before(original: type[nn.Module]) -> type:
    ours = _STAND_INS[original]
    return type(ours.__name__, (ours, original), {"__module__": ours.__module__, "__qualname__": ours.__qualname__})


def _deepcopy(self: Any, memo: dict[int, Any]) -> Any:
    if id(self) not in memo:
        found = memo[id(self)] = object.__new__(type(self))
        found.__dict__ = copy.deepcopy(self.__dict__, memo)
    return memo[id(self)]


__all__ = ["StandIn", "derived", "give_back", "is_dynamic", "obstacle", "original_of", "remade", "take"]
