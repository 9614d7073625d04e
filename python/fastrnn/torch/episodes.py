"""Modules of reinforcement-learning libraries: sequences in which episodes start run in one call.

torch.nn's layers cannot reset a state inside a sequence. Where an episode starts there, sb3-contrib's recurrent
policies loop over time, and torchrl's modules split and pad their tensors. `accelerate` gives such a module a class of
ours, derived from the one that it has, whose sequence function makes one call of the accelerated layer. No library is
imported here: a model that holds one of its modules has done so.

Before the first module changes, the library's own code and ours run over a small sequence with episode starts. A
version whose results differ is left alone.
"""

import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .identity import derived, remade
from .layers import GRU, LSTM


class _Taken:
    """A module of a library with a class made here; ``_was`` is the class that it had."""

    _was: type

    def __reduce_ex__(self, protocol: Any) -> Any:
        return remade(super().__reduce_ex__(protocol), _anew, self._was)


def _anew(kind: type) -> Any:
    """A module without attributes, for pickle and copies."""
    made: Any = _made(kind)
    return made.__new__(made)


class _Family(NamedTuple):
    """Classes of one library that are treated alike."""

    distribution: str
    known: str  # versions that the comparison was seen to pass with
    origin: str  # module of the class
    name: str
    method: str  # what ours takes the place of
    ours: Callable[[type], Any]  # makes it for a class
    layers: Callable[[Any], Sequence[Any]]  # of a module
    agrees: Callable[[type], bool]  # whether the library's code computes what ours does

    def base(self) -> type | None:
        return getattr(sys.modules.get(self.origin), self.name, None)


def _family(kind: type) -> _Family | None:
    return next((f for f in _FAMILIES if (base := f.base()) is not None and issubclass(kind, base)), None)


def _known(kind: type) -> _Family:
    family = _family(kind)
    assert family is not None
    return family


def has_sequences(module: nn.Module) -> bool:
    """Tell whether a module is one of the libraries' that this file knows."""
    return _family(type(module)) is not None


def obstacle(module: nn.Module) -> str | None:
    """Return why a module keeps its own way through sequences with episode starts."""
    kind, family = type(module), _known(type(module))
    if isinstance(module, _Taken):
        return None
    base: Any = family.base()
    if getattr(kind, family.method, None) is not getattr(base, family.method, None) or family.method in vars(module):
        return f"{kind.__name__} has its own {family.method}"
    wrong = _disagreement(family, base)
    if wrong is not None:
        version = getattr(sys.modules[family.origin.partition(".")[0]], "__version__", "of a version not known")
        return (
            f"{family.name} of {family.distribution} {version} does not compute sequences with episode starts as "
            f"fastrnn knows it from {family.known}{wrong}"
        )
    if not all(isinstance(layer, (LSTM, GRU)) for layer in family.layers(module)):
        return "its layers are not computed by fastrnn"
    return None


@functools.cache
def _disagreement(family: _Family, base: type) -> str | None:
    """Return what the comparison raised, or nothing more to say, where the library's code is not the one known."""
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            return None if family.agrees(base) else ""
    except Exception as error:  # of whatever kind: code that is not known may raise anything
        return f" ({type(error).__name__}: {error})"


def take_sequences(module: nn.Module) -> bool:
    """Let one call compute a module's sequences; return whether it was not so before."""
    kind: Any = type(module)
    if issubclass(kind, _Taken):
        return False
    module.__class__ = _made(kind)
    return True


def give_back_sequences(module: nn.Module) -> None:
    """Give a module the class back that it had."""
    if isinstance(module, _Taken):
        module.__class__ = module._was


@functools.cache
def _made(kind: type) -> type:
    family = _known(kind)
    return derived(kind, (_Taken, kind), {family.method: family.ours(kind)})


def _takes(layer: Any, x: Any) -> bool:
    """Whether a layer computes a tensor here, and eagerly."""
    return (
        isinstance(layer, (LSTM, GRU))
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not layer._elsewhere(x)
    )


# ---- sb3-contrib ----


def _of_policy(kind: type) -> Any:
    library: Any = getattr(kind, "_process_sequence")  # noqa: B009

    def process_sequence(features: Tensor, lstm_states: Any, episode_starts: Tensor, lstm: nn.LSTM) -> Any:
        """Run features (B*T,I) of B sequences; a state is zeros where ``episode_starts`` (B*T,) is not 0."""
        if not isinstance(lstm, LSTM) or lstm.bidirectional or lstm.batch_first or lstm._elsewhere(features):
            return library(features, lstm_states, episode_starts, lstm)
        B = lstm_states[0].shape[1]
        x = features.reshape(B, -1, lstm.input_size).transpose(0, 1)
        starts = episode_starts.reshape(B, -1).transpose(0, 1) != 0
        y, states = lstm(x, tuple(lstm_states), reset=starts)
        return y.transpose(0, 1).flatten(0, 1), states

    return staticmethod(process_sequence)


def _policy_layers(policy: Any) -> list[Any]:
    return [layer for layer in (policy.lstm_actor, policy.lstm_critic) if layer is not None]


def _policy_agrees(base: Any) -> bool:
    lstm = nn.LSTM(2, 3, 2, device="cpu", dtype=torch.float32)
    features, states = _draw(12, 2), (_draw(2, 2, 3), _draw(2, 2, 3))
    starts = torch.tensor([[1.0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 0]], dtype=torch.float32, device="cpu").flatten()
    theirs = base._process_sequence(features, states, starts, lstm)
    lstm.__class__ = LSTM
    ours = _of_policy(base).__func__(features, states, starts, lstm)
    return _close([theirs[0], *theirs[1]], [ours[0], *ours[1]])


# ---- torchrl ----


def _of_module(kind: type) -> Any:
    from tensordict.nn import dispatch

    library: Any = getattr(kind, "forward")  # noqa: B009

    @dispatch
    def forward(self: Any, tensordict: Any) -> Any:
        layer = _module_layer(self)
        given = _read(self, layer, tensordict)
        if given is None:
            return library(self, tensordict)
        x, is_init, states = given
        if self.recurrent_mode:
            y, ends = _episodes(layer, x, is_init, states)
        else:
            y, ends = _called(layer, x, None if states is None else _first(states), is_init)
            ends = [end.transpose(0, 1) for end in ends]
        shape = tensordict.shape
        tensordict.set(self.out_keys[0], y.reshape(*shape, y.shape[-1]))
        for key, end in zip(self.out_keys[1:], ends, strict=True):
            tensordict.set(key, end.reshape(*shape, *end.shape[-2:]))
        return tensordict

    return forward


def _module_layer(module: Any) -> Any:
    return module.lstm if hasattr(module, "lstm") else module.gru


def _read(module: Any, layer: Any, tensordict: Any) -> tuple[Tensor, Tensor, list[Tensor] | None] | None:
    """Return x (B,T,I), is_init (B,T) and states (B,T,L*D,H) where one call can compute them."""
    shape, (key, *keys) = tensordict.shape, module.in_keys[: 2 + isinstance(layer, LSTM)]
    x, is_init = tensordict.get(key, None), tensordict.get("is_init", None)
    states = [tensordict.get(key, None) for key in keys]
    recurrent = module.recurrent_mode
    if x is None or not _takes(layer, x) or (recurrent and (not shape or module.recurrent_recompute != "none")):
        return None
    fits = x.shape[:-1] == shape and is_init is not None and is_init.shape == (*shape, 1)
    if not fits or is_init.dtype != torch.bool or not math.prod(shape):
        return None
    B, T = (math.prod(shape[:-1]), shape[-1]) if recurrent else (math.prod(shape), 1)
    given: list[Tensor] | None = None
    if all(s is not None for s in states):
        if any(s.shape[:-2] != shape for s in states):
            return None
        given = [s.reshape(B, T, *s.shape[-2:]) for s in states]
    elif any(s is not None for s in states):
        return None
    return x.reshape(B, T, x.shape[-1]), is_init.reshape(B, T), given


def _first(states: Sequence[Tensor]) -> list[Tensor]:
    return [s[:, 0].transpose(0, 1) for s in states]


def _called(layer: Any, x: Any, states: Sequence[Tensor] | None, reset: Tensor | None) -> tuple[Any, list[Tensor]]:
    """Call a layer; return y and the final states (L*D,B,H)."""
    several = isinstance(layer, LSTM)
    y, ends = layer(x, None if states is None else tuple(states) if several else states[0], reset=reset)
    return y, list(ends) if several else [ends]


def _episodes(layer: Any, x: Tensor, is_init: Tensor, states: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
    """Run x (B,T,I), each episode from the state that stands at its first step.

    Returns y (B,T,P) and the states (B,T,L*D,H): at the last step of each episode the state that it ended with, else
    zeros. Episodes are rows of one packed sequence: they run side by side, not after one another.
    """
    B, T = is_init.shape
    starts = is_init.numpy(force=True).copy()
    starts[:, 0] = True  # of a row, not of an episode: the state at hand goes on either way
    first = np.flatnonzero(starts)
    lengths = np.diff(first, append=B * T)
    if len(first) == B:
        y, ends = _called(layer, x, None if states is None else _first(states), None)
    else:
        packed, places, order, back = _pack(x.flatten(0, 1), first, lengths)
        begin = None
        if states is not None:
            of_rows = torch.from_numpy(first[order]).to(x.device)
            begin = [s.flatten(0, 1).index_select(0, of_rows).transpose(0, 1) for s in states]
        y, ends = _called(layer, packed, begin, None)
        y = y.data.index_select(0, places).reshape(B, T, -1)
        ends = [end.index_select(1, back) for end in ends]
    last = torch.from_numpy(first + lengths - 1).to(x.device)
    spread = [e.new_zeros((B * T, e.shape[0], e.shape[2])).index_copy(0, last, e.transpose(0, 1)) for e in ends]
    return y, [s.reshape(B, T, *s.shape[1:]) for s in spread]


def _pack(
    x: Tensor, first: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any]
) -> tuple[PackedSequence, Tensor, np.ndarray[Any, Any], Tensor]:
    """Pack the stretches of x (tokens,I) that begin at ``first``.

    Returns the packed sequence, the place of each token in it, the order of its rows, and the row of each stretch.
    """
    # as pack_padded_sequence orders them, so that dropout draws the same numbers for the same rows
    order = torch.sort(torch.from_numpy(lengths), descending=True)[1].numpy()
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    steps = np.arange(len(x)) - np.repeat(first, lengths)
    sizes = np.bincount(steps)  # how many stretches have such a step
    places = (np.cumsum(sizes) - sizes)[steps] + np.repeat(back, lengths)
    tokens = np.empty_like(places)
    tokens[places] = np.arange(len(x))
    to = [torch.from_numpy(a).to(x.device) for a in (tokens, places, back)]
    packed = PackedSequence(x.index_select(0, to[0]), torch.from_numpy(sizes))
    return packed, to[1], order, to[2]


def _module_agrees(base: Any) -> bool:
    from tensordict import TensorDict
    from torchrl.modules import set_recurrent_mode

    keys = ["h", "c"] if base.__name__ == "LSTMModule" else ["h"]
    out_keys = ["y", *(("next", key) for key in keys)]
    module = base(2, 3, 2, in_keys=["x", *keys], out_keys=out_keys, device="cpu")
    layer = _module_layer(module).float()
    starts = torch.tensor([[1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 0]], dtype=torch.bool, device="cpu")[..., None]
    given = {key: _draw(2, 6, 2, 3) for key in keys} | {"x": _draw(2, 6, 2), "is_init": starts}
    recurrent, step = TensorDict(given, [2, 6]), TensorDict({k: v[:, 2] for k, v in given.items()}, [2])

    def results() -> list[Tensor]:
        found = []
        for data, mode in ((recurrent, True), (step, False)):
            with set_recurrent_mode(mode):
                filled = module(data.clone())
            found += [filled.get(key) for key in out_keys]
        return found

    theirs = results()
    layer.__class__ = LSTM if base.__name__ == "LSTMModule" else GRU
    module.__class__ = _made(base)
    return _close(theirs, results())


def _draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float32, device="cpu")


def _close(theirs: Sequence[Tensor], ours: Sequence[Tensor]) -> bool:
    pairs = list(zip(theirs, ours, strict=True))
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in pairs)


_TORCHRL = "torchrl.modules.tensordict_module.rnn"
_FAMILIES = (
    _Family(
        "sb3-contrib",
        "2.9",
        "sb3_contrib.common.recurrent.policies",
        "RecurrentActorCriticPolicy",
        "_process_sequence",
        _of_policy,
        _policy_layers,
        _policy_agrees,
    ),
    *(
        _Family("torchrl", "0.14", _TORCHRL, name, "forward", _of_module, lambda m: [_module_layer(m)], _module_agrees)
        for name in ("LSTMModule", "GRUModule")
    ),
)


__all__ = ["give_back_sequences", "has_sequences", "obstacle", "take_sequences"]
