"""The sentences: what came, what was expected, why, and the fix. All mismatches of a call go into one error."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ._core import Network

Array = NDArray[Any]
Shape = tuple[int, ...]

MAX_LAYERS = 1024  # beyond any network, and before a slip of the keyboard takes minutes
INT64_MAX = 2**63 - 1


class ShapeError(ValueError):
    """An array whose shape does not fit."""


class SizeError(ValueError, MemoryError):
    """A request for more memory than this machine has, or than 64 bits can count."""


class Problems:
    """The mismatches found in one call, to be raised together.

    The error is a TypeError when only types are wrong, a ShapeError when a shape is, otherwise a ValueError.

    Parameters
    ----------
    who
        Returns the subject of the sentences; it is called only when there is something to say.
    """

    def __init__(self, who: Callable[[], str]) -> None:
        self._who = who
        self._found: list[tuple[type[ValueError | TypeError], str]] = []

    def shape(self, got: str, why: str) -> None:
        self._found.append((ShapeError, f"got {got}.\n  {why}"))

    def type(self, got: str, why: str) -> None:
        self._found.append((TypeError, f"got {got}.\n  {why}"))

    def value(self, got: str, why: str) -> None:
        self._found.append((ValueError, f"got {got}.\n  {why}"))

    def refuse(self) -> None:
        """Raise one error with everything found; do nothing when all is well."""
        if not self._found:
            return
        kinds = {kind for kind, _ in self._found}
        kind = ShapeError if ShapeError in kinds else ValueError if ValueError in kinds else TypeError
        raise kind(self.text())

    def text(self) -> str:
        """Return the message of that error, "" when all is well."""
        return f"{self._who()} " + "\nIt also ".join(text for _, text in self._found) if self._found else ""


def swap_hint(name: str, shape: Shape, wanted: int) -> str:
    """When another axis has the wanted length, ask whether it was meant to be the last one."""
    last = len(shape) - 1
    for axis, size in enumerate(shape[:-1]):
        if size == wanted:
            return f" Axis {axis} is {wanted}: did you mean {name}.swapaxes({axis}, {last})?"
    return ""


def input_shape(problems: Problems, shape: Shape, input_size: int, batch_first: bool) -> None:
    """Check the shape of x: (T,B,I), or (B,T,I) with batch_first, or (T,I)."""
    batched = "(batch, time, features)" if batch_first else "(time, batch, features)"
    if len(shape) not in (2, 3):
        why = f"x must have 3 axes {batched}, or 2 axes (time, features) without a batch; it has {len(shape)}."
        if len(shape) == 1 and shape[0] == input_size:
            why += " For a single time step use x[None], or freeze().step(x)."
        elif len(shape) == 1 and input_size == 1:
            why += " For a sequence of single features use x[:, None]."
        elif len(shape) > 3 and 1 in shape:
            why += f" Axis {shape.index(1)} is 1: did you mean x.squeeze({shape.index(1)})?"
        problems.shape(f"x with shape {shape}", why)
    elif shape[-1] != input_size:
        names = batched if len(shape) == 3 else "(time, features)"
        why = f"features is {shape[-1]} but must be {input_size}.{swap_hint('x', shape, input_size)}"
        problems.shape(f"x with shape {shape} = {names}", why)


def ids_shape(problems: Problems, shape: Shape, batch_first: bool) -> None:
    """Check the shape of token ids: (T,B), or (B,T) with batch_first, or (T,)."""
    if len(shape) in (1, 2):
        return
    axes = "(batch, time)" if batch_first else "(time, batch)"
    why = f"With embedding= x holds token ids {axes}, or (time,) without a batch; it has {len(shape)} axes."
    if len(shape) == 3:
        why += " Features (time, batch, features) go without embedding=."
    problems.shape(f"ids with shape {shape}", why)


def embedding_shape(problems: Problems, shape: Shape, input_size: int) -> None:
    """Check the shape of an embedding: (V,I)."""
    if len(shape) != 2 or shape[1] != input_size:
        why = f"It must be (ids, features), with {input_size} features.{swap_hint('embedding', shape, input_size)}"
        problems.shape(f"embedding with shape {shape}", why)
    elif shape[0] == 0:
        problems.shape(f"embedding with shape {shape}", "It has no row, so no id can name one.")


def step_input_shape(problems: Problems, shape: Shape, input_size: int) -> None:
    """Check the shape of one time step: (B,I) or (I,)."""
    if len(shape) not in (1, 2):
        why = "A step takes one time step: x must be (batch, features) or (features,)."
        if len(shape) == 3:
            why += " For a whole sequence call the frozen layer itself: frozen(x, state)."
        problems.shape(f"x with shape {shape}", why)
    elif shape[-1] != input_size:
        names = "(batch, features)" if len(shape) == 2 else "(features,)"
        why = f"features is {shape[-1]} but must be {input_size}.{swap_hint('x', shape, input_size)}"
        problems.shape(f"x with shape {shape} = {names}", why)


def state_shape(problems: Problems, name: str, shape: Shape, wanted: Shape, last_axis: str, time: int | None) -> None:
    """Check the shape of one member of a state: (L*D,B,H), or (L*D,H) beside an unbatched x.

    Parameters
    ----------
    last_axis
        What the last axis is called: hidden_size or proj_size.
    time
        The number of time steps in x, to recognise a batch that sits on the time axis; None where x has no time axis.
    """
    if shape == wanted:
        return
    batched = len(wanted) == 3
    names = f"(num_layers * directions, {'batch, ' if batched else ''}{last_axis})"
    why = f"It must have shape {wanted} = {names}."
    if not batched and len(shape) == 3:
        why += f" x has no batch axis, so the state has none either: {name}[:, 0] for a batch of one."
    elif batched and len(shape) == 2 and shape == (wanted[0], wanted[2]) and wanted[1] == 1:
        why += f" Did you mean {name}[:, None]?"
    elif batched and shape == wanted[1:] and wanted[0] == 1:
        why += f" Did you mean {name}[None]?"
    elif batched and shape == (wanted[1], wanted[0], wanted[2]):
        why += f" batch_first does not apply to states: did you mean {name}.swapaxes(0, 1)?"
    elif batched and len(shape) == 3 and shape[1] == time:
        why += f" The time axis of x is {time}: did you mean x.swapaxes(0, 1), or another batch_first?"
    problems.shape(f"{name} with shape {shape}", why)


def same_shape(problems: Problems, name: str, shape: Shape, wanted: Shape, like: str) -> None:
    """Check an array that must have the shape of another one, say dy that of y."""
    if shape == wanted:
        return
    why = f"It must have the shape of {like}: {wanted}."
    if len(shape) == 3 and shape == (wanted[1], wanted[0], *wanted[2:]):
        why += f" Did you mean {name}.swapaxes(0, 1)?"
    problems.shape(f"{name} with shape {shape}", why)


def unsafe_dtype(problems: Problems, name: str, is_array: bool, got: np.dtype[Any], wanted: np.dtype[Any]) -> None:
    """Say that an array's dtype does not convert safely to the layer's."""
    if got.kind not in "biuf":
        problems.type(f"{name} with dtype {got}", f"It must hold real numbers that convert safely to {wanted}.")
        return
    fix = f"{name}.astype(np.{wanted})" if is_array else f"np.asarray({name}, dtype=np.{wanted})"
    why = f"The layer computes in {wanted}, and {got} does not convert to it without loss: use {fix}"
    if wanted == np.float32 and np.can_cast(got, np.float64, "safe"):
        why += ", or make the layer with dtype=np.float64"
    if name == "x" and got.kind in "iu":
        why += "; token ids go with embedding="
    problems.type(f"{name} with dtype {got}", why + ".")


class MoreThanNumbersError(TypeError):
    """A value whose numbers alone are not what it says."""


def numbers(value: Any) -> Array:
    """Return np.asarray of a value.

    Raises
    ------
    MoreThanNumbersError
        Where something would be lost by that: a mask, units, or what a sparse matrix stands for.
    TypeError, ValueError, RuntimeError
        Where NumPy raises them; RuntimeError for a PyTorch tensor that requires a gradient.
    """
    if type(value) is not np.ndarray:
        if hasattr(value, "mask") and hasattr(value, "filled"):
            raise MoreThanNumbersError(
                "Its mask would be ignored: say where sequences end with lengths=, or fill it in with .filled(0)."
            )
        if hasattr(value, "unit") or hasattr(value, "units"):
            raise MoreThanNumbersError("Its units would be ignored: give its numbers, .value or .magnitude.")
        if hasattr(value, "toarray") and hasattr(value, "nnz"):
            raise MoreThanNumbersError("It is sparse: give it dense, with .toarray().")
    return np.asarray(value)


def not_an_array(problems: Problems, name: str, value: object, error: Exception) -> None:
    """Say that NumPy could make no array of a value."""
    if isinstance(error, MoreThanNumbersError):
        problems.type(f"{name} of type {type(value).__name__}", str(error))
        return
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    problems.value(f"{name} of type {type(value).__name__}", f"NumPy cannot make an array of it: {text}")


def one_state(problems: Problems, name: str, value: tuple[Any, ...]) -> None:
    """Say that an RNN or a GRU was given a pair as its state."""
    problems.type(
        f"{name} of type {type(value).__name__} with {len(value)} members",
        f"Its state is one array, not a pair (h, c) as an LSTM has it: did you mean {name}[0]?",
    )


def several_states(problems: Problems, name: str, value: object, members: Sequence[str]) -> None:
    """Say that an LSTM, or an sLSTM, was given something else than a tuple of these members as its state."""
    shape = f" with shape {value.shape}" if isinstance(value, np.ndarray) else ""
    if isinstance(value, (tuple, list)):
        shape = f" with {len(value)} members"
    listed, rest = ", ".join(members), ", ".join(members[1:])
    kind, count = ("LSTM", "a pair ") if len(members) == 2 else ("sLSTM", "")
    problems.type(
        f"{name} of type {type(value).__name__}{shape}",
        f"The state of an {kind} is {count}({listed}), each an array or None for zeros: "
        f"use fastrnn.{kind}State({name if len(members) == 2 else members[0]}, {rest}).",
    )


def normaliser(problems: Problems, name: str, n: Array) -> None:
    """Check that the n of an sLSTM, which its h is divided by, is not negative."""
    if (n < 0).any():
        where = np.unravel_index(np.argmax(n < 0), n.shape)
        why = "n of an sLSTM sums up its input gates and is not negative; 0 is an empty memory."
        problems.value(f"{name}[{', '.join(map(str, where))}] = {n[where]}", why)


def integer_lengths(problems: Problems, is_array: bool, got: np.dtype[Any]) -> None:
    """Say that lengths are not integers."""
    fix = "lengths.astype(np.int64)" if is_array else "np.asarray(lengths, dtype=np.int64)"
    hint = f": use {fix}" if got.kind == "f" else ""
    problems.type(f"lengths with dtype {got}", f"They count time steps and must be integers{hint}.")


def length_shape(problems: Problems, shape: Shape, batch: int, time: int) -> None:
    """Check that there is one length per sequence."""
    if shape == (batch,):
        return
    why = f"There must be one length per sequence: shape ({batch},)."
    if shape == (time,):
        why += f" The time axis of x is {time}: did you mean x.swapaxes(0, 1), or another batch_first?"
    problems.shape(f"lengths with shape {shape}", why)


def length_range(problems: Problems, lengths: Array, time: int) -> None:
    """Check that every length is in 0..T; the first offenders are named."""
    bad = np.flatnonzero((lengths < 0) | (lengths > time))
    if bad.size:
        named = ", ".join(f"lengths[{b}] = {lengths.flat[b]}" for b in bad[:3])
        more = f" and {bad.size - 3} more out of range" if bad.size > 3 else ""
        problems.value(f"{named}{more}", f"Each length must be in 0..{time}, the number of time steps in x.")


def boolean_reset(problems: Problems, is_array: bool, got: np.dtype[Any]) -> None:
    """Say that reset is not boolean."""
    fix = "reset.astype(bool)" if is_array else "np.asarray(reset, dtype=bool)"
    problems.type(f"reset with dtype {got}", f"It must be boolean, True where a new sequence starts: use {fix}.")


def reset_shape(problems: Problems, shape: Shape, wanted: Shape, batch_first: bool) -> None:
    """Check the shape of reset: (T,B), or (B,T) with batch_first, or (T,) beside an unbatched x."""
    if shape == wanted:
        return
    names = "(time,)" if len(wanted) == 1 else "(batch, time)" if batch_first else "(time, batch)"
    why = f"It must have shape {wanted} = {names}, as x has."
    if shape == wanted[::-1]:
        why += " Did you mean reset.T?"
    problems.shape(f"reset with shape {shape}", why)


def output_array(problems: Problems, name: str, value: object, wanted: Shape, dtype: np.dtype[Any]) -> bool:
    """Check an array that is to be written to; True when it can be."""
    if not isinstance(value, np.ndarray):
        why = f"It is written to and must be a NumPy array: use np.empty({wanted}, np.{dtype})."
        problems.type(f"{name} of type {type(value).__name__}", why)
    elif value.dtype != dtype:
        problems.type(f"{name} with dtype {value.dtype}", f"It is written to and must have dtype {dtype}.")
    elif value.shape != wanted:
        problems.shape(f"{name} with shape {value.shape}", f"It is written to and must have shape {wanted}.")
    elif not (value.flags.c_contiguous and value.flags.aligned and value.flags.writeable):
        why = f"It is written to and must be writeable, aligned and C-contiguous: use np.empty({wanted}, np.{dtype})."
        problems.value(f"{name} with flags that do not allow it", why)
    else:
        return True
    return False


def overlaps(problems: Problems, outputs: Mapping[str, Array | None], inputs: Mapping[str, Array | None]) -> None:
    """Refuse outputs that share memory with an input or another output; state_out may be the state itself."""
    in_use = dict(inputs)
    hint = " (state_out may be the very arrays of state.)" if "state_out" in outputs else ""
    for name, array in outputs.items():
        for other, taken in in_use.items():
            if array is None or taken is None or not np.may_share_memory(array, taken):
                continue
            if other == name.replace("state_out", "state") and array.ctypes.data == taken.ctypes.data:
                continue
            problems.value(
                f"{name} that shares memory with {other}",
                f"It would be overwritten while in use: give {name} memory of its own.{hint}",
            )
        in_use[name] = array


def seed_error(name: str, rng: object, error: Exception) -> Exception:
    """Return the error for an rng that NumPy's default_rng does not take."""
    kind = ValueError if isinstance(error, ValueError) else TypeError
    why = f"It must be None, a seed (a non-negative integer) or a numpy.random.Generator: {error}"
    return kind(f"{name} got rng={rng!r}.\n  {why}")


def readable(nbytes: int) -> str:
    """Return a number of bytes in words, say "1.5 GiB"."""
    if nbytes < 1024:
        return f"{nbytes} bytes"
    power = min((nbytes.bit_length() - 1) // 10, 6)
    return f"{nbytes / 1024**power:.3g} {('KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB')[power - 1]}"


def printable(text: str) -> str:
    """Return a line with escapes for what is no character to print: names of a file could command a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@cache
def machine_memory() -> int:
    """Return the bytes of physical memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def refuse_size(who: str, what: str, nbytes: int) -> None:
    """Refuse what cannot fit into this machine's memory, before anything is allocated."""
    if nbytes > INT64_MAX:
        raise SizeError(f"{who}: {what} would take {readable(nbytes)}, more bytes than 64 bits can count.")
    if nbytes > machine_memory():
        have = readable(machine_memory())
        raise SizeError(f"{who}: {what} would take {readable(nbytes)}; this machine has {have}.")


def parameter_sizes(who: str, shapes: Sequence[Shape], dtype: np.dtype[Any]) -> None:
    """Refuse parameters that do not fit into memory."""
    refuse_size(who, "the parameters", dtype.itemsize * sum(math.prod(shape) for shape in shapes))


def call_size(
    who: Callable[[], str],
    network: "Network",
    time: int,
    batch: int,
    training: bool,
    dropout: bool = False,
    ids: int | None = None,
    lengths: Array | None = None,
    masks: int = 0,
) -> tuple[int, int, int]:
    """Return the bytes of outputs, tape and scratch of one call, or refuse them by size.

    Parameters
    ----------
    masks
        Bytes of what is drawn at random, which the tape keeps.
    ids
        Rows of the embedding, 0 for one-hot ids, None for features.
    lengths
        (B,) int64, each 0..T, or None.
    """
    try:
        if max(time, batch) > INT64_MAX:
            raise OverflowError
        outputs, tape, scratch = network.memory(time, batch, training, dropout, ids, lengths)
        sizes = outputs, tape + masks, scratch
    except OverflowError as error:
        text = f"{who()}: a call with T = {time} and B = {batch} needs more bytes than 64 bits can count."
        raise SizeError(text) from error
    if sum(sizes) > machine_memory():
        refuse_size(who(), f"a call with T = {time} and B = {batch}", sum(sizes))
    return sizes


def out_of_memory(
    who: str,
    network: "Network",
    time: int,
    batch: int,
    training: bool,
    ids: int | None = None,
    lengths: Array | None = None,
) -> SizeError:
    """Return the error for a call that found no memory, with the size it needed."""
    need = readable(sum(network.memory(time, batch, training, False, ids, lengths)))
    return SizeError(
        f"{who}: no memory for a call with T = {time} and B = {batch}, which needs about {need}. "
        "Take a smaller batch, or shorter sequences with the state carried on."
    )
