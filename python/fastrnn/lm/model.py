"""The language model that `fastrnn train` makes: ids to logits of the next one, its loss, its file, what it writes."""

import itertools
import os
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .. import storage
from ..kit.losses import cross_entropy
from ..kit.parts import Embedding, Linear, PartTape
from ..layers import GRU, LSTM, RNN
from ..parameters import Parameters
from ..recurrent import Recurrent
from ..storage import FileError
from .text import Characters, Ids, StrPath, TextError, Vocabulary, Window, Words, as_text, code_points, windows

Array = NDArray[Any]
Seed = np.random.Generator | int | None

CELLS: dict[str, type[RNN] | type[GRU] | type[LSTM]] = {"rnn": RNN, "gru": GRU, "lstm": LSTM}
LOGITS = 6_000_000  # at once, about
KINDS = ("LanguageModel", "CharacterModel")  # what files call it; the second until 0.1.0


class LanguageModel:
    """Embedding -> recurrent layers -> linear read-out ``y_t = W_ya a_t + b_y``: the next token's logits.

    Parameters
    ----------
    vocabulary : Characters or Words
        What it can read and write.
    cell : {"lstm", "gru", "rnn"}
        Kind of recurrent layer.
    embedding_dim, hidden_size, num_layers : int
        Sizes.
    dropout : float
        Between layers, while training.
    line_by_line : bool
        Whether the state starts anew behind every line end.
    rng : Generator, int or None
        Source of the initial weights and of the dropout masks.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        cell: str = "lstm",
        *,
        embedding_dim: int = 64,
        hidden_size: int = 256,
        num_layers: int = 1,
        dropout: float = 0.0,
        line_by_line: bool = False,
        rng: Seed = None,
    ) -> None:
        if cell not in CELLS:
            raise ValueError(f"LanguageModel got cell={cell!r}; expected one of {', '.join(map(repr, CELLS))}")
        self.rng = np.random.default_rng(rng)
        self.vocabulary = vocabulary
        self.config: dict[str, Any] = {
            "cell": cell,
            "embedding_dim": embedding_dim,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "dropout": dropout,
            "line_by_line": line_by_line,
        }
        self.embedding = Embedding(len(vocabulary), embedding_dim, rng=self.rng)
        self.network: Recurrent[Any] = CELLS[cell](
            embedding_dim, hidden_size, num_layers, dropout=dropout, rng=self.rng
        )
        self.head = Linear(hidden_size, len(vocabulary), rng=self.rng)
        ends = np.flatnonzero([token == "\n" for token in vocabulary.tokens]) if line_by_line else np.empty(0)
        if line_by_line and not ends.size:
            raise TextError("the vocabulary has no line end for the state to start anew behind")
        self.newline = int(ends[0]) if line_by_line else None
        self._logits = np.empty((0, 0, 0), self.head.dtype)

    def _parts(self) -> dict[str, Any]:
        return {"embedding": self.embedding, "network": self.network, "head": self.head}

    def parameters(self) -> list[Parameters]:
        """Return the live arrays of embedding, network and head, as the optimizers take them."""
        return [part.parameters() for part in self._parts().values()]

    @property
    def table(self) -> Array:
        """The live embedding (V,E)."""
        return self.embedding.parameters()["weight"]

    def loss_and_gradients(self, window: Window, state: Any = None) -> tuple[float, Any, list[dict[str, Array]]]:
        """Return the loss of a window, the state after it, and dL/d(parameters) in the order of `parameters`.

        The loss is the cross entropy summed over t and averaged over the streams, in nats. The gradient stops at the
        start of the window.
        """
        batch = window.ids.shape[1]
        y, state, tape = self.network.forward(window.ids, state, reset=window.reset, embedding=self.table)
        loss, dy = 0.0, np.empty_like(y)
        head = {name: np.zeros_like(p) for name, p in self.head.parameters().items()}
        for piece, lost, dlogits, head_tape in self._losses(y, window):
            loss, dy[piece] = loss + lost, self.head.backward(head_tape, dlogits, add_to=head).x
        for gradient in (dy, *head.values()):
            gradient /= batch
        network = self.network.backward(tape, dy)
        assert network.embedding is not None, "a call with ids gives the gradient of its embedding"
        return loss / batch, state, [{"weight": network.embedding}, network.parameters, head]

    def _losses(self, y: Array, window: Window) -> Iterator[tuple[slice, float, Array, PartTape]]:
        """Yield pieces of a window in time, the loss of each, its gradient by the logits, and the read-out's tape.

        The logits of a piece are not many, and stand where those of the last one stood: pages that are new to a process
        cost time.
        """
        time, batch = window.ids.shape
        steps = min(time, max(1, LOGITS // (batch * len(self.vocabulary))))
        if self._logits.shape[1:] != (batch, len(self.vocabulary)) or len(self._logits) < steps:
            self._logits = np.empty((steps, batch, len(self.vocabulary)), self.head.dtype)
        for start in range(0, time, steps):
            piece = slice(start, min(start + steps, time))
            logits, tape = self.head.forward(y[piece], out=self._logits[: piece.stop - start])
            loss, dlogits = cross_entropy(logits, window.targets[piece], reduction="sum", out=logits)
            yield piece, loss, dlogits, tape

    def nats_per_token(self, ids: Ids, batch: int = 1, seq_len: int = 256) -> float:
        """Return the mean of -log p(token | those before it) over a text of ids (n,), read as `batch` streams."""
        total, count, state = 0.0, 0, None
        for window in windows(ids, batch, seq_len, self.newline):
            y, state = self.network(window.ids, state, reset=window.reset, embedding=self.table)
            total += sum(loss for _, loss, _, _ in self._losses(y, window))
            count += window.targets.size
        return total / count

    def stream(self, prompt: str | None = None, *, temperature: float = 1.0, rng: Seed = None) -> Iterator[str]:
        """Return an endless iterator over what continues the prompt, drawn token by token through ``freeze().step``.

        Parameters
        ----------
        prompt : str, optional
            What to read first; by default a line end, or the first token where there is none. Its characters must be in
            the vocabulary; unknown words are read as the unknown one.
        temperature : float
            Divides the logits: below 1 the likely tokens become likelier. The unknown word is never drawn.
        rng : Generator, int or None
            Source of the draws.
        """
        if prompt is None:
            tokens = self.vocabulary.tokens
            ids = [tokens.index("\n") if "\n" in tokens else 0]
        else:
            ids = self.vocabulary.encode_prompt(prompt).tolist()
        if not temperature > 0:
            raise ValueError(f"sample got temperature={temperature}; expected a number above 0")
        return self._stream(ids, temperature, np.random.default_rng(rng))

    def _stream(self, ids: list[int], temperature: float, rng: np.random.Generator) -> Iterator[str]:
        fast, tokens = self.network.freeze(), self.vocabulary.tokens

        def read(token: int, state: Any) -> tuple[Array, Any]:
            y, state = fast.step(self.table[[token]], state)
            return y, None if token == self.newline else state

        state = None
        for last in ids:
            y, state = read(last, state)
        while True:
            with np.errstate(over="ignore"):
                logits = self.head(y)[0].astype(np.float64) / temperature
            if self.vocabulary.unknown is not None:
                logits[self.vocabulary.unknown] = -np.inf
            # adding Gumbel noise and taking the largest draws from softmax(logits)
            drawn = int(np.argmax(logits + rng.gumbel(size=logits.shape)))
            yield self.vocabulary.between(tokens[last], tokens[drawn]) + tokens[drawn]
            y, state = read(drawn, state)
            last = drawn

    def sample(self, length: int, prompt: str | None = None, *, temperature: float = 1.0, rng: Seed = None) -> str:
        """Return the first `length` tokens of `stream`, which continue the prompt."""
        return "".join(itertools.islice(self.stream(prompt, temperature=temperature, rng=rng), length))

    # Files

    def arrays(self) -> dict[str, Array]:
        """Return all that `load_arrays` needs: the live parameters, each as the name of its part, a dot and its own."""
        parts = self._parts().items()
        return {f"{part}.{name}": array for part, layer in parts for name, array in layer.parameters().items()}

    def load_arrays(self, arrays: Mapping[str, Array]) -> None:
        """Copy in what `arrays` returned; others are not looked at.

        Raises
        ------
        TypeError, ValueError
            If they do not fit.
        """
        for part, layer in self._parts().items():
            prefix = f"{part}."
            layer.load_state_dict({k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)})

    def describe(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return what a file keeps of the model beside `arrays`: for the description, and the vocabulary."""
        separator = " " if isinstance(self.vocabulary, Words) else ""
        tokens = self.vocabulary.tokens[isinstance(self.vocabulary, Words) :]
        description = {"model": KINDS[0], "level": self.vocabulary.level, "config": self.config}
        return description, {"vocabulary": code_points(separator.join(tokens))}

    @classmethod
    def from_description(cls, name: StrPath, description: Mapping[str, Any], arrays: Mapping[str, Array]) -> Self:
        """Return the model that a file describes, with its arrays.

        Raises
        ------
        FileError
            If it describes something else, or does not fit together.
        """
        if description.get("model") not in KINDS:
            raise FileError(f"{os.fspath(name)} holds something else than a language model")
        try:
            tokens = as_text(arrays["vocabulary"])
            words = description.get("level") == Words.level
            model = cls(Words(tokens.split(" ")) if words else Characters(tokens), **description["config"])
            model.load_arrays(arrays)
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"{os.fspath(name)} does not fit together: {error}") from error
        return model

    def save(self, path: StrPath) -> None:
        """Write the model to one .npz file: a new file that takes the place of the old one only when complete."""
        description, arrays = self.describe()
        storage.write(path, description, {**arrays, **self.arrays()})

    @classmethod
    def load(cls, path: StrPath) -> Self:
        """Read a model that `save` wrote, or that a checkpoint of its training holds.

        Raises
        ------
        FileError
            If the file is something else, damaged, or from a later version.
        OSError
            If it cannot be read.
        """
        return cls.from_description(path, *storage.read(path))


def check_output(path: StrPath) -> None:
    """Refuse, before the work, a path that a model cannot be saved to, or that holds something other than a model.

    Raises
    ------
    FileError
        If there is something else than a saved model.
    OSError
        If the folder or the file cannot be written to.
    """
    name, target = os.fspath(path), os.path.realpath(path)
    if not os.path.basename(name):
        raise FileError(f"{name!r} names no file; choose another --output")
    if os.path.lexists(target):
        if not os.path.isfile(target):
            raise FileError(f"{name} exists and is not a regular file; choose another --output")
        try:
            description, arrays = storage.read(target)
            LanguageModel.from_description(target, description, arrays)
        except FileError as error:
            raise FileError(f"{name} exists and is no saved language model; choose another --output") from error
        if "checkpoint" in description:
            raise FileError(f"{name} is the checkpoint of an unfinished training; choose another --output")
        if not os.access(target, os.W_OK):
            raise PermissionError(f"{name} is write-protected")
    storage.try_folder(path)
