"""Text as ids: files, vocabularies of characters and words, windows."""

import sys
from pathlib import Path

import numpy as np
import pytest

from fastrnn.lm.text import (
    Characters,
    TextError,
    Words,
    builtin_text,
    count_windows,
    read_text,
    split_words,
    windows,
)
from support import CHINESE, ENGLISH


class TestText:
    @pytest.mark.parametrize(
        ("data", "text"),
        [
            ("天气 is fine\n".encode(), "天气 is fine\n"),
            (b"\xef\xbb\xbfwith a mark", "with a mark"),
            (b"a\r\nb\rc\n", "a\nb\nc\n"),
            ("\N{CAT} \0".encode(), "\N{CAT} \0"),
        ],
    )
    def test_read(self, tmp_path: Path, data: bytes, text: str) -> None:
        (tmp_path / "a.txt").write_bytes(data)
        assert read_text(tmp_path / "a.txt") == text

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (b"", "a.txt is empty"),
            (b"abc\xff", "a.txt is not UTF-8: byte 0xff at offset 3; convert it"),
            ("text".encode("utf-16"), "is not UTF-8: byte 0xff at offset 0"),
        ],
    )
    def test_bad_files(self, tmp_path: Path, data: bytes, words: str) -> None:
        (tmp_path / "a.txt").write_bytes(data)
        with pytest.raises(TextError, match=words):
            read_text(tmp_path / "a.txt")
        with pytest.raises(FileNotFoundError):
            read_text(tmp_path / "b.txt")

    def test_builtin(self) -> None:
        text, name = builtin_text()
        assert len(text) > 200_000
        assert "assignment" in text
        assert name == f"pydoc_data.topics of Python {'.'.join(map(str, sys.version_info[:3]))}"


class TestCharacters:
    @pytest.mark.parametrize("text", [ENGLISH, CHINESE, "\N{CAT}a\0\N{CAT}", "x"])
    def test_there_and_back(self, text: str) -> None:
        vocabulary = Characters(text)
        assert "".join(vocabulary.tokens) == "".join(sorted(set(text)))
        assert len(vocabulary) == len(set(text))
        ids = vocabulary.encode(text)
        assert [vocabulary.tokens[i] for i in ids] == list(text)
        assert vocabulary.decode(ids) == text
        assert vocabulary.encode("").size == 0

    @pytest.mark.parametrize(("text", "shown"), [("bad", "'d'"), ("好", r"'\\u597d'"), ("\udc80", r"'\\udc80'")])
    def test_unknown_characters(self, text: str, shown: str) -> None:
        with pytest.raises(TextError, match=f"1 of the characters is not among the 3 known: {shown}"):
            Characters("abc").encode(text)

    def test_empty(self) -> None:
        with pytest.raises(TextError, match="at least one character"):
            Characters("")


@pytest.mark.parametrize(("n", "batch", "seq_len"), [(2, 1, 1), (50, 3, 4), (49, 3, 4), (49, 3, 100), (17, 16, 5)])
def test_windows_walk_along_the_streams(n: int, batch: int, seq_len: int) -> None:
    ids = np.arange(n)
    cut = list(windows(ids, batch, seq_len))
    assert len(cut) == count_windows(n, batch, seq_len)
    assert all(w.ids.shape == w.targets.shape == (seq_len, batch) for w in cut[:-1])
    whole = np.concatenate([w.ids for w in cut])
    length = (n - 1) // batch
    for b in range(batch):
        np.testing.assert_array_equal(whole[:, b], ids[b * length : (b + 1) * length])
    np.testing.assert_array_equal(np.concatenate([w.targets for w in cut]), whole + 1)


def test_too_few_tokens_for_the_streams() -> None:
    with pytest.raises(TextError, match="8 tokens are too few for a batch of 8"):
        list(windows(np.arange(8), 8, 2))


def test_windows_start_anew_behind_line_ends() -> None:
    ids = np.array([1, 0, 2, 3, 0, 0, 4, 5, 6])
    cut = list(windows(ids, 2, 3, newline=0))
    reset = np.concatenate([w.reset for w in cut])
    np.testing.assert_array_equal(reset[:, 0], [False, False, True, False])
    np.testing.assert_array_equal(reset[:, 1], [False, True, True, False])
    assert all(w.reset is None for w in windows(ids, 2, 3))


class TestWords:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("The cat's 2 eyes, well-kept.", ["The", "cat's", "2", "eyes", ",", "well-kept", "."]),
            ("a\n\n b\t c", ["a", "\n", "\n", "b", "c"]),
            ("我要去北京。OK 3天", ["我", "要", "去", "北", "京", "。", "OK", "3", "天"]),
            ("x_1 = f(y) # é", ["x_1", "=", "f", "(", "y", ")", "#", "é"]),
            ("안녕 세상", ["안녕", "세상"]),
            ("  \t ", []),
        ],
    )
    def test_split(self, text: str, words: list[str]) -> None:
        assert split_words(text) == words

    def test_the_most_frequent_are_kept(self) -> None:
        text = "b a c b a d b"
        words = Words.of(text, 2)
        assert words.tokens == ["<unknown>", "b", "a"]
        assert words.unknown == 0
        assert words.encode(text).tolist() == [1, 2, 0, 1, 2, 0, 1]
        assert Words.of(text, 9, least_count=2).tokens == ["<unknown>", "b", "a"]
        assert repr(words) == "Words(3 words)"

    @pytest.mark.parametrize(
        "text", ["Yes, it is (so far).\nNew line: [x]!", "我要去北京。", "a \u201cquoted\u201d word"]
    )
    def test_a_text_that_is_spaced_as_usual_comes_back(self, text: str) -> None:
        words = Words.of(text, 99)
        assert words.decode(words.encode(text)) == text

    def test_empty(self) -> None:
        with pytest.raises(TextError, match="there is no word in the text"):
            Words.of(" \t", 9)
        with pytest.raises(TextError, match="no word comes 2 times; make --min-count smaller"):
            Words.of("a b", 9, 2)
