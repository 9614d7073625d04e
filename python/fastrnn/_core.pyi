"""The compiled core: kernels, threads, and nothing that checks on behalf of a user.

Letters: ``T`` time, ``B`` batch, ``I`` input, ``H`` hidden, ``P`` projection size (``H`` without one),
``L`` layers, ``D`` directions. Every array has the network's dtype unless said otherwise. Rows (the last axis)
have unit stride; the other strides of ``x``, ``dy`` and ``reset`` are free. A call that breaks these rules raises
ValueError or TypeError in few words: ``checks.py`` owns the sentences a user reads.
"""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from .options import General

Array = NDArray[Any]

__version__: str

class Tape:
    """What one training forward call saved for backward. Opaque and read-only."""

    @property
    def nbytes(self) -> int: ...

# h (L*D, B, P) and the others of the cell (L*D, B, H), contiguous; each may be None, and all together: zeros.
States = Sequence[Array | None] | None
# of recurrent dropout the mask (L*D, T, B, P), of packed sequences (L*D, tokens, P), or without a time axis
# (L*D, B, P), True keeps; whether it has that axis, and what a kept element is multiplied by; of zoneout the masks of h
# (L*D, T, B, P) and of c (L*D, T, B, H), or packed, True where the state stays; all bool, C-contiguous, or None. A
# zoneout without a mask takes its expectation
Noise = tuple[Array | None, bool, float, Array | None, Array | None]
# what training draws: the masks of dropout (L-1, T, B, D*P), bool, C-contiguous, True keeps the element; what a kept
# element is multiplied by; and of a general cell the noise
Drawn = tuple[Array | None, float, Noise | None]

class Frozen:
    """Packed weights of one network; immutable, may be called by several threads at once."""

    @property
    def nbytes(self) -> int: ...
    def forward(
        self,
        x: Array,  # (T, B, I)
        states: States,
        lengths: Array | None,  # (B,) int64, each 0..T
        reset: Array | None,  # (T, B) bool
        batch_first: bool,  # True: y is laid out and returned as (B, T, D*P)
        threads: int,
        embedding: Array | None = None,
    ) -> tuple[Array, tuple[Array, ...]]: ...  # y (T, B, D*P), the final states
    def step(
        self,
        x: object,  # (B, I)
        state: object,  # h (L, B, P), for an LSTM the tuple (h, c) with c (L, B, H); None: zeros
        out: object,  # (B, P), overwritten; None: a new one
        state_out: object,  # as state, overwritten, may be state itself; None: a new one
        threads: int,
    ) -> tuple[Array, Any] | None: ...  # y and the new state; None: some array is not as it must be

class HostThreads:
    """Threads of the host program that run the calls of a network: PyTorch's, by ``torch_parallel_for``."""

    def __init__(self, parallel_for: int) -> None: ...  # the function's address; threads.hpp says what it must keep

class Network:
    """Sizes and kernels of a stack of recurrent layers; holds no weights.

    ``parameters`` are PyTorch's arrays in PyTorch's order: for each layer, for each direction, weight_ih, weight_hh,
    bias_ih and bias_hh if ``bias``, weight_hr if ``proj_size``, weight_peephole if there are peepholes, and those that
    `describe` names of a normalised cell; all C-contiguous. They are read at every call.
    """

    def __init__(
        self,
        cell: str,  # "rnn_tanh", "rnn_relu", "gru" (reset_after), "gru_original", "lstm", "lstm_norm" and so on
        dtype: str,  # "float32" or "float64"
        input_size: int,
        hidden_size: int,
        proj_size: int,  # 0: none
        num_layers: int,
        bidirectional: bool,
        bias: bool,
        *,
        general: General | None = None,  # what a general cell is told, by these names
        isa: str | None = None,  # None: the best one this CPU has
        host: HostThreads | None = None,  # None: the process's own team runs the calls
        heads: int = 1,  # blocks on the diagonal of weight_hh, which divide hidden_size
    ) -> None: ...
    @property
    def isa(self) -> str: ...
    def forward(
        self,
        parameters: Sequence[Array],
        # (T, B, I), or packed (tokens, I): the rows of one time step after the other; lengths must then fall; or token
        # ids (T, B), int64, of rows of the embedding; what lies past a length is not looked at
        x: Array,
        states: States,
        lengths: Array | None,
        reset: Array | None,
        training: bool,
        batch_first: bool,
        threads: int,
        embedding: Array | None = None,  # (V, I), contiguous, beside token ids; None: they are one-hot and V is I
        drawn: Drawn | None = None,  # in training
        room: Array | None = None,  # uint8, for the tape; None: the tape has memory of its own
    ) -> tuple[Array, tuple[Array, ...], Tape | None]:
        """y (of packed sequences packed), the final states, and the tape of a training call."""
    def tape_room(self, dropout: bool) -> tuple[int, int]:
        """Room for a tape: so many bytes for each of T*B tokens, and so many more."""
    def tape(
        self,
        x: Array,
        y: Array,
        states: States,
        lengths: Array | None,
        reset: Array | None,
        *,
        batch_first: bool,
        room: Array,
        drawn: Drawn | None = None,
    ) -> Tape:
        """The tape of a forward call with these arguments and results, which was given this room."""
    def backward(
        self,
        parameters: Sequence[Array],
        tape: Tape,
        dy: Array | None,  # (T, B, D*P)
        dstates: States,  # of the final states
        hidden: bool,
        threads: int,
    ) -> tuple[Array | None, tuple[Array, ...], list[Array], Array | None]:
        """dx, those of the states, one gradient per parameter in their order, dL/dh_t of the last layer.

        dx is laid out like y of the forward call: (B, T, I) with batch_first, and hidden (B, T, D*P). With token ids it
        is dL/dembedding, or None where they are one-hot.
        """
    def freeze(
        self,
        parameters: Sequence[Array],
        formats: tuple[str, str] | None = None,
        products: str | None = None,
        # for each parameter (rows,) float32, what an integer of a row of int8 counts; None where nothing is said
        scales: Sequence[Array | None] | None = None,
    ) -> Frozen: ...
    def memory(
        self,
        T: int,
        B: int,
        training: bool,
        dropout: bool,
        ids: int | None = None,  # rows of the embedding (0: one-hot); None: x holds features
        lengths: Array | None = None,  # (B,) int64, each 0..T
    ) -> tuple[int, int, int]:
        """Bytes of one call: outputs, tape, scratch. OverflowError where they pass 2**63 - 1."""

class Tensors:
    """Reads PyTorch's tensors by DLPack's C functions (exchange: a type's __dlpack_c_exchange_api__)."""

    def __init__(self, exchange: Any, types: tuple[type, ...]) -> None: ...

class Cell:
    """One time step on tensors, of a network of one layer in one direction without a projection.

    Where some tensor is of another type, dtype, shape or device than it must be, or not contiguous, nothing is computed
    and the result is False.
    """

    def __init__(self, network: Network, tensors: Tensors) -> None: ...
    def slots(self) -> tuple[int, int, int]: ...  # slots of dz; the input side's first; gate 0's on the hidden side
    def tape_bytes(self, B: int) -> int: ...
    def step(
        self,
        x: Any,  # (B, I)
        states: tuple[Any, ...],  # h (B, H), or h and c, or nothing for zeros
        weights: tuple[Any, ...],  # weight_ih, weight_hh, bias_ih, bias_hh
        ends: tuple[Any, ...],  # the next state, written
        y: Any,  # h once more, written, for backward; None in inference
        tape: Any,  # tape_bytes(B) of uint8, written; None in inference
        threads: int,
    ) -> bool: ...
    def step_backward(
        self,
        x: Any,
        states: tuple[Any, ...],
        weights: tuple[Any, ...],
        y: Any,
        tape: Any,
        seeds: tuple[Any, ...],  # the gradients of the next state, None for zeros
        dx: Any,  # written
        dstates: tuple[Any, ...],  # of h, or h and c, written even where the state was zeros
        dweights: tuple[Any, ...],  # written, unless dz is given
        dz: Any,  # None, or where the gate gradients (B, slots*H) go in place of those of the weights
        threads: int,
    ) -> bool: ...

def softmax(
    logits: Array,  # (n, m)
    classes: Array,  # (n,) int64, each 0..m-1
    smoothing: float,
    scale: float,  # of the gradient
    threads: int,
    out: Array | None = None,  # where the gradient goes, which may be logits; None: a new array
) -> tuple[Array, Array]:
    """The cross entropy of each row (n,) in float64, and its gradient with respect to the logits (n, m)."""

def isas() -> list[str]:
    """The instruction sets that this wheel holds and this CPU runs, best first; "scalar" is the last."""

def products(isa: str) -> list[str]: ...
def cells() -> list[str]:
    """The list of cells in csrc/kernels/structs.hpp."""

def describe(
    cell: str, projection: bool, peephole: bool
) -> tuple[int, list[tuple[str, str]], list[tuple[str, list[str], bool]]]:
    """What a cell has: gates; states (name, axis); parameters of one direction (name, axes, whether it is a bias).

    Axes are "inputs", "hidden", "output" (the projection's size, or hidden), "head" (output by the number of heads),
    "peepholes" and "gates" (gates times hidden).
    """

def fill_memory(on: bool) -> None:
    """Whether the memory of calls and tapes is filled with 0xff, NaN, before it is used; for tests."""

def available_threads() -> int:
    """Processors this process may use: its affinity mask, cut by the cgroup's quota."""

def yield_when_crowded(on: bool) -> None:
    """Whether calls run on one thread for a while after others took the team's processors; off for tests."""

def product(
    a: Array,
    a_transposed: bool,
    b: Array,
    b_transposed: bool,
    threads: int,
    out: Array | None = None,  # where the result goes; None: a new array
    add: bool = False,  # to what out holds
    host: HostThreads | None = None,
) -> Array:
    """a b, or with the transpose of either; C-contiguous matrices of one dtype. The same bits for any threads."""

def activation(isa: str, name: str, x: Array) -> Array:
    """sigmoid or tanh of a contiguous array as the kernels compute it; for tests."""

def fma_loop(iterations: int, dtype: str) -> float:
    """Nothing but independent multiply-adds in the registers of this thread; the floating-point operations done."""

def narrow_loop(iterations: int, weights: str) -> float:
    """The same of products with such weights; 0 where they are multiplied as float32."""

def read_loop(x: Array, passes: int) -> float:
    """Read a contiguous float32 array so many times; the bytes read."""
