"""Text as character ids: corpus, vocabulary, the windows of truncated BPTT, and the model that reads them."""

import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import storage
from .layers import GRU, LSTM, RNN
from .losses import cross_entropy
from .nn import Embedding, Linear
from .parameters import Parameters
from .recurrent import Recurrent
from .storage import FileError

Ids = NDArray[np.int64]
Seed = np.random.Generator | int | None
StrPath = str | os.PathLike[str]

CELLS: dict[str, type[RNN] | type[GRU] | type[LSTM]] = {"rnn": RNN, "gru": GRU, "lstm": LSTM}


class TextError(ValueError):
    """A text that cannot be trained on or continued; the message is one line."""


def read_text(path: StrPath) -> str:
    """Read a UTF-8 file; a byte order mark is dropped and line ends become a plain newline.

    Raises
    ------
    TextError
        If the file is empty or not UTF-8.
    OSError
        If it cannot be read.
    """
    data = Path(path).read_bytes()
    if not data:
        raise TextError(f"{os.fspath(path)} is empty: there is nothing to learn from")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(
            f"{os.fspath(path)} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}; "
            "convert it first, for example with iconv -t UTF-8"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def builtin_text() -> tuple[str, str]:
    """Return the language reference that Python ships as help texts, and its name with the Python version."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    return text, f"pydoc_data.topics of Python {platform.python_version()}"


def _code_points(text: str) -> NDArray[np.uint32]:
    # surrogatepass: a lone surrogate, as in an undecodable command line, becomes an unknown character, not a crash
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint32)


def _as_text(points: NDArray[Any]) -> str:
    return points.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


class Vocabulary:
    """The distinct characters (Unicode code points) of a text, in code point order; the place is the id.

    Parameters
    ----------
    characters : str
        Any text; repeated characters count once.
    """

    def __init__(self, characters: str) -> None:
        self._points = np.unique(_code_points(characters))
        if self._points.size == 0:
            raise TextError("a vocabulary needs at least one character")

    def __len__(self) -> int:
        return int(self._points.size)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} characters)"

    @property
    def characters(self) -> str:
        """All characters, in the order of their ids."""
        return self.decode(np.arange(len(self)))

    def encode(self, text: str) -> Ids:
        """Return the ids (n,) of a text; TextError names the characters that are not in the vocabulary."""
        points = _code_points(text)
        ids = np.minimum(np.searchsorted(self._points, points), len(self) - 1)
        unknown = np.unique(points[self._points[ids] != points])
        if unknown.size:
            shown = ", ".join(ascii(chr(point)) for point in unknown[:5]) + (", ..." if unknown.size > 5 else "")
            are = "is" if unknown.size == 1 else "are"
            raise TextError(f"{unknown.size} of the characters {are} not among the {len(self)} known: {shown}")
        return ids.astype(np.int64)

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """Return the text of ids (n,)."""
        return _as_text(self._points[np.asarray(ids, dtype=np.int64)])


class Window(NamedTuple):
    """A piece of the streams: ``targets`` is ``ids`` one character later."""

    ids: Ids  # (T,B)
    targets: Ids  # (T,B)


def windows(ids: Ids, batch: int, seq_len: int) -> Iterator[Window]:
    """Cut a text into ``batch`` streams of equal length and walk along all of them at once.

    The state at the end of one window is the state at the start of the next: that is truncated BPTT (Williams and
    Peng, 1990). The last window may be shorter; the few characters that do not fill the streams are left out.

    Parameters
    ----------
    ids : array (n,)
        The text.
    batch : int
        Number of streams B.
    seq_len : int
        Longest window T.
    """
    length = (len(ids) - 1) // batch
    if length < 1:
        raise TextError(f"{len(ids)} characters are too few for a batch of {batch} streams")
    inputs = np.ascontiguousarray(ids[: length * batch].reshape(batch, length).T)
    targets = np.ascontiguousarray(ids[1 : length * batch + 1].reshape(batch, length).T)
    for start in range(0, length, seq_len):
        yield Window(inputs[start : start + seq_len], targets[start : start + seq_len])


def count_windows(characters: int, batch: int, seq_len: int) -> int:
    """Return how many windows :func:`windows` yields for a text of that many characters."""
    return -(-((characters - 1) // batch) // seq_len)


class CharacterModel:
    """Embedding -> recurrent layers -> linear read-out ``y_t = W_ya a_t + b_y``: the next character's logits.

    Parameters
    ----------
    vocabulary : Vocabulary
        The characters it can read and write.
    cell : {"lstm", "gru", "rnn"}
        Kind of recurrent layer.
    embedding_dim, hidden_size, num_layers : int
        Sizes.
    dropout : float
        Between layers, while training.
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
        rng: Seed = None,
    ) -> None:
        if cell not in CELLS:
            raise ValueError(f"CharacterModel got cell={cell!r}; expected one of {', '.join(map(repr, CELLS))}")
        rng = np.random.default_rng(rng)
        self.vocabulary = vocabulary
        self.config: dict[str, Any] = {
            "cell": cell,
            "embedding_dim": embedding_dim,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "dropout": dropout,
        }
        self.embedding = Embedding(len(vocabulary), embedding_dim, rng=rng)
        self.network: Recurrent[Any] = CELLS[cell](embedding_dim, hidden_size, num_layers, dropout=dropout, rng=rng)
        self.head = Linear(hidden_size, len(vocabulary), rng=rng)

    def _parts(self) -> dict[str, Any]:
        return {"embedding": self.embedding, "network": self.network, "head": self.head}

    def parameters(self) -> list[Parameters]:
        """Return the live arrays of embedding, network and head, as the optimizers take them."""
        return [part.parameters() for part in self._parts().values()]

    @property
    def _table(self) -> NDArray[Any]:
        return self.embedding.parameters()["weight"]

    def loss_and_gradients(self, window: Window, state: Any = None) -> tuple[float, Any, list[dict[str, NDArray[Any]]]]:
        """Return the loss of a window, the state after it, and dL/d(parameters) in the order of `parameters`.

        The loss is the cross entropy summed over t and averaged over the streams, in nats. The gradient stops at the
        start of the window.
        """
        batch = window.ids.shape[1]
        y, state, tape_y = self.network.forward(window.ids, state, embedding=self._table)
        logits, tape_logits = self.head.forward(y)
        loss, dlogits = cross_entropy(logits, window.targets, reduction="sum")
        dlogits /= batch
        head = self.head.backward(tape_logits, dlogits)
        network = self.network.backward(tape_y, head.x)
        assert network.embedding is not None, "a call with ids gives the gradient of its embedding"
        return loss / batch, state, [{"weight": network.embedding}, network.parameters, head.parameters]

    def bits_per_character(self, ids: Ids, batch: int = 1, seq_len: int = 256) -> float:
        """Return the mean of -log2 p(character | those before it) over a text of ids (n,), read as `batch` streams."""
        total, count, state = 0.0, 0, None
        for window in windows(ids, batch, seq_len):
            y, state = self.network(window.ids, state, embedding=self._table)
            total += cross_entropy(self.head(y), window.targets, reduction="sum")[0]
            count += window.targets.size
        return total / count / float(np.log(2.0))

    def sample(self, length: int, prompt: str = "\n", *, temperature: float = 1.0, rng: Seed = None) -> str:
        """Return `length` characters that continue the prompt, drawn one by one through ``freeze().step``.

        Parameters
        ----------
        length : int
            Number of characters to draw.
        prompt : str
            What to read first; not part of the result. Its characters must be in the vocabulary.
        temperature : float
            Divides the logits: below 1 the likely characters become likelier.
        rng : Generator, int or None
            Source of the draws.
        """
        if not prompt:
            raise TextError("the prompt is empty; give at least one character to start from")
        if not temperature > 0:
            raise ValueError(f"sample got temperature={temperature}; expected a number above 0")
        rng = np.random.default_rng(rng)
        fast = self.network.freeze()
        ids = self.vocabulary.encode(prompt).tolist()
        state = None
        for one in ids[:-1]:
            _, state = fast.step(self.embedding([one]), state)
        for _ in range(length):
            y, state = fast.step(self.embedding(ids[-1:]), state)
            logits = self.head(y)[0].astype(np.float64) / temperature
            # adding Gumbel noise and taking the largest draws from softmax(logits)
            ids.append(int(np.argmax(logits + rng.gumbel(size=logits.shape))))
        return self.vocabulary.decode(ids[len(ids) - length :])

    def save(self, path: StrPath) -> None:
        """Write the model to one .npz file: a new file that takes the place of the old one only when complete."""
        arrays = {
            f"{part}.{name}": a for part, layer in self._parts().items() for name, a in layer.parameters().items()
        }
        points = _code_points(self.vocabulary.characters)
        storage.write(path, {"model": type(self).__name__, "config": self.config}, {"vocabulary": points, **arrays})

    @classmethod
    def load(cls, path: StrPath) -> "CharacterModel":
        """Read a model that `save` wrote.

        Raises
        ------
        FileError
            If the file is something else, damaged, or from a later version.
        OSError
            If it cannot be read.
        """
        description, arrays = storage.read(path)
        if description.get("model") != cls.__name__:
            raise FileError(f"{os.fspath(path)} holds something else than a character model")
        try:
            model = cls(Vocabulary(_as_text(arrays["vocabulary"])), **description["config"])
            for part, layer in model._parts().items():
                prefix = f"{part}."
                layer.load_state_dict({k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)})
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"{os.fspath(path)} does not fit together: {error}") from error
        return model


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
    if os.path.lexists(target):
        if not os.path.isfile(target):
            raise FileError(f"{name} exists and is not a regular file; choose another --output")
        try:
            CharacterModel.load(target)
        except FileError as error:
            raise FileError(f"{name} exists and is no saved character model; choose another --output") from error
        if not os.access(target, os.W_OK):
            raise PermissionError(f"{name} is write-protected")
    storage.try_folder(path)
