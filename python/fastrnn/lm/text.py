"""Text as ids: corpus, vocabularies of characters and words, and the windows of truncated BPTT."""

import os
import platform
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
StrPath = str | os.PathLike[str]


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


def code_points(text: str) -> NDArray[np.uint32]:
    """Return the Unicode code points of a text."""
    # surrogatepass: a lone surrogate, as in an undecodable command line, becomes an unknown character, not a crash
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint32)


def as_text(points: NDArray[Any]) -> str:
    """Return the text of code points."""
    return points.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


class Vocabulary(ABC):
    """The tokens a model reads and writes; the place of each is its id."""

    level: ClassVar[str]
    token: ClassVar[str]  # what one is called

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def tokens(self) -> list[str]:
        """All tokens, in the order of their ids."""

    @property
    def unknown(self) -> int | None:
        """The id that stands for every token that is not here, if there is one."""
        return None

    @abstractmethod
    def encode(self, text: str) -> Ids:
        """Return the ids (n,) of a text."""

    def encode_prompt(self, prompt: str) -> Ids:
        """Return the ids (n,) of what a text is to begin with; TextError if there are none, or unknown characters."""
        try:
            ids = self.encode(prompt)
        except TextError as error:
            raise TextError(f"the prompt cannot be read: {error}") from error
        if ids.size == 0:
            raise TextError(f"the prompt is empty; give at least one {self.token} to start from")
        return ids

    @abstractmethod
    def between(self, first: str, second: str) -> str:
        """Return what stands between two tokens in a text."""

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """Return the text of ids (n,)."""
        tokens, text = self.tokens, []
        before = None
        for token in (tokens[i] for i in np.asarray(ids, dtype=np.int64)):
            text += [token] if before is None else [self.between(before, token), token]
            before = token
        return "".join(text)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} {self.token}s)"


class Characters(Vocabulary):
    """The distinct characters (Unicode code points) of a text, in code point order.

    Parameters
    ----------
    text : str
        Any text; repeated characters count once.
    """

    level, token = "char", "character"

    def __init__(self, text: str) -> None:
        self._points = np.unique(code_points(text))
        if self._points.size == 0:
            raise TextError("a vocabulary needs at least one character")

    def __len__(self) -> int:
        return int(self._points.size)

    @property
    def tokens(self) -> list[str]:
        """All characters, in the order of their ids."""
        return list(as_text(self._points))

    def encode(self, text: str) -> Ids:
        """Return the ids (n,) of a text; TextError names the characters that are not in the vocabulary."""
        points = code_points(text)
        ids = np.minimum(np.searchsorted(self._points, points), len(self) - 1)
        unknown = np.unique(points[self._points[ids] != points])
        if unknown.size:
            shown = ", ".join(ascii(chr(point)) for point in unknown[:5]) + (", ..." if unknown.size > 5 else "")
            are = "is" if unknown.size == 1 else "are"
            raise TextError(f"{unknown.size} of the characters {are} not among the {len(self)} known: {shown}")
        return ids.astype(np.int64)

    def between(self, first: str, second: str) -> str:
        """Nothing."""
        return ""

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """Return the text of ids (n,)."""
        return as_text(self._points[np.asarray(ids, dtype=np.int64)])


# Scripts written without spaces, kana and Han: every character of theirs is a word.
_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"\n|[{_ALONE}]|[^\W{_ALONE}]+(?:['\u2019-][^\W{_ALONE}]+)*|[^\w\s]")
_IS_ALONE = re.compile(f"[{_ALONE}\u3000-\u303f\uff00-\uffef]")  # with their punctuation
_OPENING = set("([{\u201c\u2018\u00ab\n")
_CLOSING = set(")]},.;:!?%\u201d\u2019\u00bb\u2026\n'\"")


def split_words(text: str) -> list[str]:
    """Return words, single punctuation marks, line ends, and each character of Chinese and Japanese by itself."""
    return _WORD.findall(text)


class Words(Vocabulary):
    """The words of a text, the most frequent first; id 0 stands for all others.

    Parameters
    ----------
    words : sequence of str
        Without the unknown one.
    """

    level, token = "word", "word"
    UNKNOWN = "<unknown>"

    def __init__(self, words: Sequence[str]) -> None:
        self._tokens = [self.UNKNOWN, *words]
        self._ids = {word: i for i, word in enumerate(self._tokens)}
        if not words:
            raise TextError("a vocabulary needs at least one word")

    @classmethod
    def of(cls, text: str, most: int, least_count: int = 1) -> "Words":
        """Return the words of a text that come at least so often, at most so many."""
        counts = Counter(split_words(text))
        if not counts:
            raise TextError("there is no word in the text")
        frequent = [word for word, count in counts.most_common(most) if count >= least_count]
        if not frequent:
            raise TextError(f"no word comes {least_count} times; make --min-count smaller")
        return cls(frequent)

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def tokens(self) -> list[str]:
        """All words, in the order of their ids."""
        return list(self._tokens)

    @property
    def unknown(self) -> int:
        """The id that stands for every other word."""
        return 0

    def encode(self, text: str) -> Ids:
        """Return the ids (n,) of a text; spaces between words are not kept."""
        return np.array([self._ids.get(word, 0) for word in split_words(text)], dtype=np.int64)

    def between(self, first: str, second: str) -> str:
        """Return a space, or nothing beside brackets, before punctuation and in Chinese and Japanese."""
        joined = first in _OPENING or second in _CLOSING or _IS_ALONE.match(first) or _IS_ALONE.match(second)
        return "" if joined else " "


class Window(NamedTuple):
    """A piece of the streams: ``targets`` is ``ids`` one token later."""

    ids: Ids  # (T,B)
    targets: Ids  # (T,B)
    reset: NDArray[np.bool_] | None = None  # (T,B) where the state starts anew


def windows(ids: Ids, batch: int, seq_len: int, newline: int | None = None) -> Iterator[Window]:
    """Cut a text into ``batch`` streams of equal length and walk along all of them at once.

    The state at the end of one window is the state at the start of the next: that is truncated BPTT (Williams and
    Peng, 1990). The last window may be shorter; the few tokens that do not fill the streams are left out.

    Parameters
    ----------
    ids : array (n,)
        The text.
    batch : int
        Number of streams B.
    seq_len : int
        Longest window T.
    newline : int, optional
        The id behind which the state starts anew.
    """
    length = (len(ids) - 1) // batch
    if length < 1:
        raise TextError(f"{len(ids)} tokens are too few for a batch of {batch} streams")

    def streams(a: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(a[: length * batch].reshape(batch, length).T)

    inputs, targets = streams(ids), streams(ids[1:])
    reset = None if newline is None else streams(np.concatenate([[False], ids[:-1] == newline]))
    for start in range(0, length, seq_len):
        part = slice(start, start + seq_len)
        yield Window(inputs[part], targets[part], None if reset is None else reset[part])


def count_windows(tokens: int, batch: int, seq_len: int) -> int:
    """Return how many windows :func:`windows` yields for a text of that many tokens."""
    return -(-((tokens - 1) // batch) // seq_len)
