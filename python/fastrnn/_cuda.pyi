"""The compiled GPU module: kernels, arrays in a GPU's memory, and nothing that checks on behalf of a user.

It is there where fastrnn was built with nvcc; `fastrnn.cuda` loads it. Letters: ``T`` time, ``B`` batch, ``I`` input,
``H`` hidden, ``P`` projection size (``H`` without one), ``L`` layers, ``D`` directions. A stream is an address, 0 the
default one. x, y and their gradients have the precision's storage dtype, states float32 or, of a float64 network,
float64. A call that breaks these rules raises ValueError or TypeError in few words.
"""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

emulated: bool  # a test build, whose GPU is emulated on the CPU

def why_not() -> str | None: ...  # why no GPU can be used, None where one can
def devices() -> list[dict[str, Any]]: ...
def prepare(
    device: int, blas: str | None
) -> str | None: ...  # once, before its networks; what is wrong with that cuBLASLt
def is_loaded(library: str) -> bool: ...  # in this process
def device_of(pointer: int) -> int: ...
def synchronize(device: int, stream: int | None = None) -> None: ...
def runs_on(architectures: str, major: int, minor: int) -> bool: ...
def wait_for(device: int, earlier: int, later: int) -> None: ...  # stream `later` waits for what is in `earlier`
def copy_in(to: Array, source: NDArray[Any], stream: int) -> None: ...
def copy_out(source: Array, to: NDArray[Any], stream: int) -> None: ...  # waits for the stream
def draw_masks(masks: Array, drop: float, seed: int, stream: int) -> None: ...  # uint8: 0 with probability `drop`

# The host's plans, for tests.
def set_chunk_bytes(device: int, nbytes: int) -> None: ...
def set_resident(device: int, on: bool) -> None: ...
def plan_resident(
    unit_blocks: int, B: int, directions: int, processors: int, columns: tuple[int, int], held: tuple[int, int]
) -> tuple[bool, int, int]: ...
def step_columns(units: int, B: int, directions: int, processors: int) -> int: ...
def chunk_steps(T: int, B: int, token_bytes: int, chunk_bytes: int) -> int: ...
def product_shares(n: int, K: int, m: int, result_bytes: int, processors: int) -> int: ...

class Array:
    """An array in a GPU's memory, whoever owns it."""

    @staticmethod
    def empty(shape: Sequence[int], dtype: str, device: int, stream: int) -> Array: ...
    @staticmethod
    def from_dlpack(capsule: object) -> Array: ...
    @staticmethod
    def from_interface(interface: dict[str, Any], device: int, owner: object) -> Array: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def strides(self) -> tuple[int, ...]: ...  # in elements
    @property
    def dtype(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def contiguous(self) -> bool: ...
    @property
    def device(self) -> int: ...
    @property
    def stream(self) -> int: ...  # in whose order memory of our own was written
    @property
    def owner(self) -> object: ...
    @property
    def pointer(self) -> int: ...
    def lasting(self) -> Array: ...  # itself; given back when the device has done everything
    def swapped(self) -> Array: ...  # the first two axes exchanged
    def with_batch(self) -> Array: ...  # (T,...) as (T,1,...)
    def reshaped(self, to: Sequence[int]) -> Array: ...
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...
    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> object: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

class Call:
    """The arguments of a call, which it holds: their contents must stay until backward is done."""

class Network:
    """One network on one GPU."""

    def __init__(
        self,
        cell: str,
        precision: str,  # float32, tf32, bfloat16, float16, float64
        input_size: int,
        hidden_size: int,
        proj_size: int,
        num_layers: int,
        bidirectional: bool,
        bias: bool,
        device: int,
        *,
        general: Any = None,  # as of _core.Network
        heads: int = 1,
    ) -> None: ...
    def call(
        self,
        x: Array,  # (T, B, I), or with starts (rows, I)
        states: Sequence[Array | None],  # (L*D, B, size) each, as the cell is described; none at all: zeros
        starts: Array | None,  # (T,) int64: rows before those of each time, of packed sequences
        lengths: Array | None,  # (B,) int64
        reset: Array | None,  # (T, B) bool
        drawn: tuple[Any, float, Any] | None = None,  # as `_core.Drawn`, with masks (L-1, T, B, D*P); all uint8
    ) -> Call: ...
    def tape_bytes(self, call: Call) -> int: ...
    def tape_room(self, dropout: bool) -> tuple[int, int]: ...  # for each of T*B tokens, at most, and more
    def forward_bytes(self, parameters: list[Array], call: Call, training: bool) -> int: ...  # of scratch
    def backward_bytes(self, call: Call) -> int: ...
    def forward(
        self,
        stream: int,
        parameters: list[Array],  # PyTorch's, in its order, contiguous
        call: Call,
        y: Array,  # (T, B, D*P), or (rows, D*P); written
        ends: Sequence[Array],  # the final states, written
        tape: Array | None,  # (tape_bytes,) uint8, written
        scratch: Array,  # (forward_bytes,) uint8
    ) -> None: ...
    def backward(
        self,
        stream: int,
        parameters: list[Array],
        call: Call,
        y: Array,
        tape: Array,
        dy: Array | None,
        dstates: Sequence[Array | None],  # of the final states; none at all: zeros
        dx: Array,  # written, contiguous
        begins: Sequence[Array],  # gradients of the initial states, written
        gradients: list[Array],  # written, shaped like parameters
        hidden: Array | None,  # (T, B, D*P) dL/dh_t, written
        scratch: Array,  # (backward_bytes,) uint8
    ) -> None: ...
