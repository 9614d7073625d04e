"""Text, vocabulary, windows, the character model, and the job that trains it."""

import dataclasses
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrnn
from fastrnn import FileError
from fastrnn.text import (
    CharacterModel,
    TextError,
    Vocabulary,
    Window,
    builtin_text,
    check_output,
    count_windows,
    read_text,
    windows,
)
from fastrnn.train import DivergedError, Options, train
from support import assert_same_bits

ENGLISH = "the cat sat on the mat. the dog sat on the log.\n" * 40
CHINESE = "我要去北京。我要离开上海。你好，世界！\n" * 60  # noqa: RUF001


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


class TestVocabulary:
    @pytest.mark.parametrize("text", [ENGLISH, CHINESE, "\N{CAT}a\0\N{CAT}", "x"])
    def test_there_and_back(self, text: str) -> None:
        vocabulary = Vocabulary(text)
        assert vocabulary.characters == "".join(sorted(set(text)))
        assert len(vocabulary) == len(set(text))
        ids = vocabulary.encode(text)
        assert [vocabulary.characters[i] for i in ids] == list(text)
        assert vocabulary.decode(ids) == text
        assert vocabulary.encode("").size == 0

    @pytest.mark.parametrize(("text", "shown"), [("bad", "'d'"), ("好", r"'\\u597d'"), ("\udc80", r"'\\udc80'")])
    def test_unknown_characters(self, text: str, shown: str) -> None:
        with pytest.raises(TextError, match=f"1 of the characters is not among the 3 known: {shown}"):
            Vocabulary("abc").encode(text)

    def test_empty(self) -> None:
        with pytest.raises(TextError, match="at least one character"):
            Vocabulary("")


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


def test_too_few_characters_for_the_streams() -> None:
    with pytest.raises(TextError, match="8 characters are too few for a batch of 8"):
        list(windows(np.arange(8), 8, 2))


def small(cell: str = "lstm", **options: Any) -> CharacterModel:
    return CharacterModel(Vocabulary(ENGLISH), cell, **{"embedding_dim": 5, "hidden_size": 9, "rng": 3, **options})


def same(a: CharacterModel, b: CharacterModel) -> None:
    assert a.vocabulary.characters == b.vocabulary.characters
    assert a.config == b.config
    for one, two in zip(a.parameters(), b.parameters(), strict=True):
        assert_same_bits(dict(one), dict(two))


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
class TestCharacterModel:
    def test_gradients(self, cell: str) -> None:
        """Along a random direction, against differences of the loss, which the model computes in float32."""
        model = small(cell, num_layers=2)
        ids = model.vocabulary.encode(ENGLISH[:61]).reshape(61, 1)
        window = Window(ids[:-1], ids[1:])
        _, _, gradients = model.loss_and_gradients(window)
        rng = np.random.default_rng(0)
        for parameters, gradient in zip(model.parameters(), gradients, strict=True):
            assert parameters.keys() == gradient.keys()
            for name, p in parameters.items():
                start = p.copy()
                # towards the gradient, so that the difference is well above the rounding of the loss
                direction = gradient[name] / np.linalg.norm(gradient[name]) + rng.standard_normal(p.shape) / p.size
                losses = []
                for step in (1e-2, -1e-2):
                    p[...] = start + step * direction
                    losses.append(model.loss_and_gradients(window)[0])
                p[...] = start
                assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(np.sum(gradient[name] * direction), rel=0.02)

    def test_the_state_carries_context(self, cell: str) -> None:
        model = small(cell)
        ids = model.vocabulary.encode(ENGLISH[:41]).reshape(41, 1)
        whole, end, _ = model.loss_and_gradients(Window(ids[:-1], ids[1:]))
        first, state, _ = model.loss_and_gradients(Window(ids[:20], ids[1:21]))
        second, state, _ = model.loss_and_gradients(Window(ids[20:40], ids[21:]), state)
        assert first + second == pytest.approx(whole, rel=1e-5)
        np.testing.assert_allclose(np.asarray(state), np.asarray(end), atol=1e-6)
        assert model.bits_per_character(ids[:, 0]) == pytest.approx(whole / 40 / math.log(2), rel=1e-5)
        assert model.bits_per_character(ids[:, 0], seq_len=7) == pytest.approx(whole / 40 / math.log(2), rel=1e-5)

    def test_sample(self, cell: str) -> None:
        model = small(cell)
        text = model.sample(50, "the ", rng=1)
        assert len(text) == 50
        assert set(text) <= set(ENGLISH)
        assert model.sample(50, "the ", rng=1) == text
        assert model.sample(50, "the ", rng=2) != text
        assert model.sample(0) == ""

        # at a low temperature it is the likeliest character that comes, step by step
        ids = model.vocabulary.encode("the cat").tolist()
        for _ in range(12):
            y, _ = model.network(model.embedding(np.reshape(ids, (-1, 1))))
            ids.append(int(model.head(y[-1, 0]).argmax()))
        assert model.sample(12, "the cat", temperature=1e-6) == model.vocabulary.decode(ids[-12:])

    def test_save_and_load(self, cell: str, tmp_path: Path) -> None:
        model, path = small(cell, num_layers=2, dropout=0.25), tmp_path / "name without ending"
        model.save(path)
        assert os.listdir(tmp_path) == [path.name]
        same(CharacterModel.load(path), model)
        other = CharacterModel(Vocabulary(CHINESE), cell, hidden_size=3)
        other.save(path)
        same(CharacterModel.load(path), other)


class TestFiles:
    def test_bad_options(self) -> None:
        with pytest.raises(ValueError, match="cell='transformer'; expected one of 'rnn', 'gru', 'lstm'"):
            small("transformer")
        with pytest.raises(TextError, match="prompt is empty"):
            small().sample(3, "")
        with pytest.raises(ValueError, match="temperature=0"):
            small().sample(3, temperature=0)

    def test_load_refuses_other_files(self, tmp_path: Path) -> None:
        path = tmp_path / "a.npz"
        path.write_text("text")
        with pytest.raises(FileError, match=r"a\.npz"):
            CharacterModel.load(path)
        np.savez(path, a=1)
        with pytest.raises(FileError, match=r"a\.npz"):
            CharacterModel.load(path)
        fastrnn.LSTM(2, 3).save(path)
        with pytest.raises(FileError, match="something else than a character model"):
            CharacterModel.load(path)
        with pytest.raises(FileNotFoundError):
            CharacterModel.load(tmp_path / "b.npz")

    def test_load_refuses_what_does_not_fit_together(self, tmp_path: Path) -> None:
        path, model = tmp_path / "a.npz", small()
        model.config["hidden_size"] = 10
        model.save(path)
        with pytest.raises(FileError, match="does not fit together"):
            CharacterModel.load(path)

    def test_check_output(self, tmp_path: Path) -> None:
        check_output(tmp_path / "new.npz")
        assert os.listdir(tmp_path) == []
        small().save(tmp_path / "old.npz")
        check_output(tmp_path / "old.npz")
        (tmp_path / "letter.txt").write_text("dear")
        with pytest.raises(FileError, match=r"letter\.txt exists and is no saved character model"):
            check_output(tmp_path / "letter.txt")
        with pytest.raises(FileError, match="not a regular file"):
            check_output(tmp_path)
        with pytest.raises(FileError, match="not a regular file"):
            check_output("/dev/null")
        with pytest.raises(OSError, match=r"nowhere/a\.npz"):
            check_output(tmp_path / "nowhere" / "a.npz")
        with pytest.raises(OSError, match=r"letter\.txt/a\.npz"):
            check_output(tmp_path / "letter.txt" / "a.npz")
        assert sorted(os.listdir(tmp_path)) == ["letter.txt", "old.npz"]


@pytest.fixture
def options(tmp_path: Path) -> Options:
    (tmp_path / "text.txt").write_text(ENGLISH)
    return Options(
        text=str(tmp_path / "text.txt"),
        output=str(tmp_path / "model.npz"),
        hidden=24,
        embedding=8,
        batch=4,
        seq_len=16,
        epochs=2,
        sample=30,
        threads=1,
    )


class TestTraining:
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"cell": "gru", "layers": 2, "dropout": 0.1},
            {"cell": "rnn", "optimizer": "sgd", "epochs": 4},
        ],
    )
    def test_it_learns(self, options: Options, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
        outcome = train(dataclasses.replace(options, epochs=8, **{k: v for k, v in changes.items() if k != "epochs"}))
        uniform = math.log2(len(set(ENGLISH)))
        assert outcome.bits_per_character < 0.6 * uniform
        assert not outcome.interrupted
        same(CharacterModel.load(options.output), outcome.model)
        printed = capsys.readouterr().out
        assert f"{len(ENGLISH):,} characters, {len(set(ENGLISH))} distinct" in printed
        assert f"result  {outcome.bits_per_character:.3f} bits per character" in printed
        assert max(map(len, printed.split("sample ")[0].splitlines()[4:])) <= 78

    def test_chinese(self, options: Options) -> None:
        assert options.text is not None
        Path(options.text).write_text(CHINESE, encoding="utf-8")
        outcome = train(dataclasses.replace(options, epochs=12, prompt="我要"))
        assert outcome.bits_per_character < 2
        assert outcome.model.vocabulary.characters == "".join(sorted(set(CHINESE)))

    def test_the_seed_decides(self, options: Options) -> None:
        one, two = train(options).model, train(options).model
        same(one, two)
        other = train(dataclasses.replace(options, seed=1)).model
        assert not np.array_equal(other.parameters()[0]["weight"], one.parameters()[0]["weight"])

    def test_steps(self, options: Options, capsys: pytest.CaptureFixture[str]) -> None:
        assert train(dataclasses.replace(options, steps=3)).steps == 3
        assert "3/3" in capsys.readouterr().out

    def test_ctrl_c_keeps_what_was_learned(
        self, options: Options, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        calls = iter(range(5))

        def interrupted(self: CharacterModel, window: Window, state: Any = None) -> Any:
            if next(calls) == 4:
                raise KeyboardInterrupt
            return learn(self, window, state)

        learn = CharacterModel.loss_and_gradients
        monkeypatch.setattr(CharacterModel, "loss_and_gradients", interrupted)
        outcome = train(options)
        assert outcome.interrupted
        assert outcome.steps == 4
        same(CharacterModel.load(options.output), outcome.model)
        assert "stopped after 4 steps" in capsys.readouterr().out

    def test_divergence_saves_nothing(self, options: Options) -> None:
        with (
            pytest.raises(DivergedError, match=r"(the loss is (nan|inf)|a parameter is infinite or NaN) at step"),
            np.errstate(all="ignore"),
        ):
            train(dataclasses.replace(options, optimizer="sgd", lr=1e38, clip=1e38))
        assert not os.path.exists(options.output)

    @pytest.mark.parametrize(
        ("changes", "error", "words"),
        [
            ({"batch": 1000}, TextError, "too short: 1,728 of its 1,920 characters.*needs 16,001; make"),
            ({"prompt": "Zebra!"}, TextError, r"4 of the characters are not among the 15 known: '!', 'Z', 'b', 'r'"),
            ({"prompt": ""}, TextError, "prompt is empty"),
            ({"hidden": 10**12}, fastrnn.SizeError, "the parameters would take"),
        ],
    )
    def test_bad_input_is_found_first(
        self, options: Options, changes: dict[str, Any], error: type[Exception], words: str
    ) -> None:
        with pytest.raises(error, match=words):
            train(dataclasses.replace(options, **changes))
        assert not os.path.exists(options.output)
