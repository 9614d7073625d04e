"""What RNN, GRU, LSTM and sLSTM share: running forwards and backwards, freezing, parameters, copies and files.

Every call reads the parameters as they are at that moment. `arguments` turns what it is given into what the core takes,
`checks` words the errors, `frozen` holds what `freeze` returns.
"""

import copy
import math
import operator
from typing import Any, Self, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import arguments, checks, storage
from ._core import Network
from .arguments import Inputs, OneHot, StateLike
from .frozen import Frozen, Weights, pack, read_weights
from .initialise import RecurrentWeights, Seed, as_generator, initialise
from .memory import NumpyMemory, read_lengths
from .options import DEFAULTS, General, general, read_options
from .parameters import Parameters
from .results import Gradients, MemoryEstimate, Tape, refuse_foreign
from .running import Running
from .spec import Description, S, describe

Array = NDArray[Any]


class Recurrent(Running[S]):
    """What RNN, GRU, LSTM and sLSTM share; the letters are those of `Spec`.

    The options given to the constructor are attributes of the same name and cannot be changed afterwards.
    """

    _usual: tuple[str, ...]  # the activations of the usual cell

    def __init__(self, rng: Seed, **given: Any) -> None:
        name = type(self).__name__
        options = read_options(name, given, len(self._usual))
        generator = as_generator(name, rng)
        needed = {
            key: options.get(key, 0)
            for key in ("input_size", "hidden_size", "num_layers", "bias", "bidirectional", "proj_size", "heads")
        }
        self.__dict__.update(options)
        named = self._description().shapes(**needed)
        checks.parameter_sizes(name, list(named.values()), options["dtype"])
        parameters = Parameters({key: np.empty(shape, options["dtype"]) for key, shape in named.items()})
        self.__setstate__({"options": options, "parameters": parameters, "rng": generator})
        initialise(parameters, self.hidden_size, self.heads, "uniform", None, generator)

    @property
    def isa(self) -> str:
        """The instruction set of the kernels that compute it."""
        return self._network.isa

    # Running

    def __call__(
        self,
        x: ArrayLike,
        state: StateLike = None,
        *,
        lengths: Any = None,
        reset: Any = None,
        embedding: ArrayLike | OneHot | None = None,
    ) -> tuple[Array, S]:
        """Run over a sequence, without dropout and without saving anything for backward.

        Parameters
        ----------
        x : array_like
            (T,B,I), with ``batch_first`` (B,T,I), or (T,I) without a batch. Kept as it is if its dtype is the layer's
            and its last axis contiguous, converted if NumPy calls that safe. With `embedding` token ids: integers
            (T,B), (B,T) or (T,).
        state : array, LSTMState, sLSTMState or None
            Initial state (L*D,B,P), or (L*D,P) beside an x without a batch; never batch first. Of an LSTM the pair
            (h, c) with c (L*D,B,H), of an sLSTM (h, c, n, m). None, also as a member, is zeros.
        lengths : sequence of int, optional
            (B,), each in 0..T, in any order. Past its length a sequence's y is zero and its x does not matter; the
            final state is the one at its last step, and the reverse direction starts there. Length 0 leaves the state.
        reset : array of bool, optional
            (T,B), with ``batch_first`` (B,T), or (T,). True at t cuts between t-1 and t, in every layer: the state that
            enters step t is zero, and in the reverse direction the one that goes on to step t-1.
        embedding : array_like (V,I) or "one-hot", optional
            The layer then reads ``embedding[x]``, or one-hot vectors of length I, with the same bits and faster: each
            distinct id is multiplied by the input weights once, however many tokens have it. Ids past a length do not
            matter.

        Returns
        -------
        y : array
            (T,B,D*P), laid out as x is: h of the last layer at each step, the directions side by side.
        state : array, LSTMState or sLSTMState
            The final state, shaped like the initial one.

        Raises
        ------
        ShapeError, ValueError, TypeError
            With everything that does not fit.
        SizeError
            If the call needs more memory than there is.
        """
        given = arguments.read(self, self._memory, self._brief, x, state, lengths, reset, embedding)
        return self._run(self._memory, given)[:2]

    def forward(
        self,
        x: ArrayLike,
        state: StateLike = None,
        *,
        lengths: Any = None,
        reset: Any = None,
        embedding: ArrayLike | OneHot | None = None,
        training: bool = True,
        rng: Seed = None,
    ) -> tuple[Array, S, Tape]:
        """Run over a sequence and save what `backward` needs.

        Parameters
        ----------
        x, state, lengths, reset, embedding
            As for calling the layer. The tape holds x and the embedding by reference: do not change them before
            `backward`.
        training : bool
            Whether to apply dropout, between the layers: each element of a layer's output is dropped with probability
            ``dropout``, the others are scaled by 1 / (1 - dropout) (Srivastava et al. 2014). And whether to draw
            ``zoneout``, which else takes its expectation, and ``recurrent_dropout``.
        rng : seed or Generator, optional
            Source of the masks of this call; by default the layer's own generator, which moves on.

        Returns
        -------
        y : array
            As from calling the layer, but read-only, as the tape shares its memory.
        state : array, LSTMState or sLSTMState
            The final state.
        tape : Tape
            For `backward`, any number of times.

        Raises
        ------
        ShapeError, ValueError, TypeError, SizeError
            As calling the layer does.
        """
        given = arguments.read(self, self._memory, self._brief, x, state, lengths, reset, embedding)
        return self._train(self._memory, given, training, rng)

    def backward(
        self, tape: Tape, dy: ArrayLike | None, dstate: StateLike = None, hidden: bool = False
    ) -> Gradients[S]:
        """Backpropagation through time (Werbos 1990) over one forward call.

        Parameters
        ----------
        tape : Tape
            From `forward` of this layer, its parameters not changed since.
        dy : array_like or None
            dL/dy, shaped like y; None is zeros.
        dstate : array, LSTMState, sLSTMState or None
            Gradient with respect to the final state, shaped like it; None, also as a member, is zeros.
        hidden : bool
            Whether to return dL/dh_t of the last layer for every t as well.

        Returns
        -------
        Gradients
            ``.x`` or, after a call with token ids, ``.embedding``; ``.state``, ``.parameters`` (dict by PyTorch's
            names) and ``.hidden``.

        Raises
        ------
        ValueError
            If the tape is another layer's, or from before the parameters were changed through the API.
        ShapeError, TypeError, SizeError
            As calling the layer does.
        """
        refuse_foreign(self, tape, Tape)
        return self._back(self._memory, tape, dy, dstate, hidden)

    def freeze(self, weights: Weights = None) -> Frozen[S]:
        """Return an immutable copy with packed weights, for inference, which several threads may call at once.

        Parameters
        ----------
        weights : None, "bfloat16", "int8" or mapping
            What to keep the matrices as; None is the layer's own dtype. States, biases and sums stay float32.
            "bfloat16" rounds weights to 8 bits of precision. "int8" rounds each row of a matrix to integers in +-127,
            by a scale of its own, and at each step each row that it multiplies. ``{"ih": "int8", "hh": "bfloat16"}``
            has one for the weights of the input and one for those of the hidden state, with a projection's.

        Raises
        ------
        ValueError
            For other words, layers of float64, and weights that are not finite.
        """
        return cast(Frozen[S], pack(self, read_weights(self, weights)))

    def to(self, device: str | int, dtype: str | None = None, *, fp32_precision: str = "ieee") -> Any:
        """Return this layer on another device, with copies of its parameters.

        Parameters
        ----------
        device : str or int
            "cuda", "cuda:1" or a number for a `fastrnn.cuda.Layer` on that NVIDIA GPU; "cpu" for a copy of this layer.
        dtype : str, optional
            Of the parameters there: "float32", "float64" and, on a GPU, "bfloat16" or "float16".
        fp32_precision : {"ieee", "tf32"}
            Whether a GPU may round the factors of float32 products to 11 bits, as its matrix units do.

        Raises
        ------
        RuntimeError
            If no GPU can be used; `fastrnn.cuda.why_not` says why.
        TypeError, ValueError
            For an unknown device, dtype or precision.
        """
        if device != "cpu":
            from .cuda.layers import Layer

            return Layer(self, device, dtype, fp32_precision)
        if fp32_precision != "ieee":
            raise ValueError(
                f"{self._brief()}.to got fp32_precision={fp32_precision!r}; the CPU computes in IEEE only."
            )
        copied = copy.deepcopy(self)
        if dtype is None:
            return copied
        other = type(self)(**{**self._options, "dtype": dtype}, rng=copied._rng)
        other.load_state_dict(copied.parameters())
        return other

    def estimate_memory(
        self, T: int, B: int, training: bool = True, *, lengths: ArrayLike | None = None
    ) -> MemoryEstimate:
        """Estimate the bytes that a call with T steps and B sequences takes, beside x.

        Tape and scratch grow with the number of tokens, the sum of the lengths; y and dx hold T steps of each sequence.

        Parameters
        ----------
        T, B : int
            Time steps and sequences.
        training : bool
            Whether it is `forward`, which saves a tape, or a plain call.
        lengths : array_like, optional
            (B,) integers in 0..T, as of the call; T each by default.

        Raises
        ------
        TypeError, ValueError
            If T or B is no integer, or negative, or lengths do not fit.
        SizeError
            If it needs more memory than this machine has, or than 64 bits can count.
        """
        T, B = operator.index(T), operator.index(B)
        if T < 0 or B < 0:
            raise ValueError(f"estimate_memory got T={T} and B={B}; both must be at least 0")
        if lengths is not None:
            problems = checks.Problems(lambda: f"{self._brief()}.estimate_memory")
            lengths = read_lengths(problems, lengths, B, T, False)
            problems.refuse()
        drops = training and self._drops
        masks = self._mask_bytes(T, B) if training else 0
        sizes = checks.call_size(self._brief, self._network, T, B, training, drops, lengths=lengths, masks=masks)
        return MemoryEstimate(*sizes, parameters=sum(p.nbytes for p in self._parameters.values()))

    # Parameters

    def initialise(
        self, recurrent: RecurrentWeights = "uniform", forget_bias: float | None = None, rng: Seed = None
    ) -> Self:
        """Draw all parameters anew, in place.

        Everything not named below is uniform in +-1/sqrt(H), as in PyTorch and as a new layer has it. With
        ``layer_norm=True`` gains are 1 and biases 0.

        Parameters
        ----------
        recurrent : {"uniform", "orthogonal", "identity"}
            The recurrent weights of each gate, and of each head: orthogonal (Saxe et al. 2014), or the identity with
            all biases zero (Le, Jaitly and Hinton 2015).
        forget_bias : float, optional
            LSTM and sLSTM only: the sum of the forget gate's two biases, often 1 (Jozefowicz et al. 2015).
        rng : seed or Generator, optional
            By default the layer's own generator.

        Returns
        -------
        The layer itself.

        Raises
        ------
        ValueError
            For another word, or a forget bias where there is none to set.
        """
        name = f"{self._brief()}.initialise"
        problems = checks.Problems(lambda: name)
        if recurrent not in ("uniform", "orthogonal", "identity"):
            problems.value(f"recurrent={recurrent!r}", 'It must be "uniform", "orthogonal" or "identity".')
        if forget_bias is not None and not (self._has_cell_state and self.bias):
            why = "Only an LSTM or sLSTM with bias=True has a forget gate's bias: leave it None."
            problems.value(f"forget_bias={forget_bias!r}", why)
        self._parameters.writable(problems)
        problems.refuse()
        generator = self._rng if rng is None else as_generator(name, rng)
        initialise(self._parameters, self.hidden_size, self.heads, recurrent, forget_bias, generator)
        self._parameters.changed("initialise")
        return self

    def save(self, path: storage.Path) -> None:
        """Write the layer to an .npz file of exactly this name, for `fastrnn.load`.

        A file already there is replaced only when the new one is complete.

        Raises
        ------
        OSError
            If the path cannot be written to.
        """
        storage.write(path, {"cell": self._cell(), "options": self._plain_options()}, self._parameters)

    def _plain_options(self) -> dict[str, Any]:
        """Return the options as JSON has them."""
        return {**self._options, "dtype": self.dtype.name}

    # What the methods above share

    def _refuse_too_large(self, given: Inputs, training: bool, random: bool = False) -> None:
        size = given.time, given.batch, training, random and self._drops, given.ids, given.lengths
        masks = self._mask_bytes(given.time, given.batch) if random else 0
        checks.call_size(self._brief, self._network, *size, masks)

    def _told(self, error: MemoryError, given: Inputs, training: bool) -> MemoryError:
        size = given.time, given.batch, training, given.ids, given.lengths
        return checks.out_of_memory(self._brief(), self._network, *size)

    def _draw_masks(self, memory: Any, given: Inputs, rng: "np.random.Generator") -> Array:
        shape = (given.time, given.batch, self._width)
        masks = np.empty((self.num_layers - 1, *shape), bool)
        for mask in masks:
            np.greater_equal(rng.random(shape, dtype=np.float32), self.dropout, out=mask)
        return masks

    def _use_isa(self, isa: str | None) -> None:
        """Take the kernels of one instruction set; for tests. Copies and pickles do not keep it."""
        self.__dict__["_network"] = self._make_network(isa)

    def _general(self) -> General | None:
        return general(self._options, self._usual)

    def _description(self) -> Description:
        return describe(self._cell(), self.proj_size > 0, self.peephole)

    def _make_network(self, isa: str | None = None) -> Network:
        return Network(
            self._cell(),
            self.dtype.name,
            self.input_size,
            self.hidden_size,
            self.proj_size,
            self.num_layers,
            self.bidirectional,
            self.bias,
            general=self._general(),
            isa=isa,
            heads=self.heads,
        )

    def __setattr__(self, name: str, value: object) -> None:
        if name in self.__dict__.get("_options", ()):
            raise AttributeError(f"{name} of a layer is fixed when it is made: make a new {type(self).__name__}.")
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        return {"options": self._options, "parameters": self._parameters, "rng": self._rng}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state["options"])
        self.__dict__.update(_options=state["options"], _parameters=state["parameters"], _rng=state["rng"])
        self.__dict__["_states"] = self._description().states
        self.__dict__["_memory"] = NumpyMemory(self.dtype)
        self.__dict__["_network"] = self._make_network()

    def __repr__(self) -> str:
        listed = ", ".join(f"{k}={v!r}" for k, v in self._plain_options().items() if DEFAULTS.get(k) != v)
        count = sum(math.prod(p.shape) for p in self._parameters.values())
        return f"{type(self).__name__}({listed})  # {count:,} parameters"
