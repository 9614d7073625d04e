"""The language model: gradients, context, what it writes, its file, and what its embedding says."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrnn
from fastrnn import FileError
from fastrnn.lm import neighbours
from fastrnn.lm.model import LanguageModel, check_output
from fastrnn.lm.text import Characters, TextError, Window, Words, windows
from support import CHINESE, ENGLISH, assert_same_bits, same_models


def small(cell: str = "lstm", **options: Any) -> LanguageModel:
    return LanguageModel(Characters(ENGLISH), cell, **{"embedding_dim": 5, "hidden_size": 9, "rng": 3, **options})


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
class TestModel:
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
        assert model.nats_per_token(ids[:, 0]) == pytest.approx(whole / 40, rel=1e-5)
        assert model.nats_per_token(ids[:, 0], seq_len=7) == pytest.approx(whole / 40, rel=1e-5)

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
        same_models(LanguageModel.load(path), model)
        other = LanguageModel(Characters(CHINESE), cell, hidden_size=3)
        other.save(path)
        same_models(LanguageModel.load(path), other)


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
            LanguageModel.load(path)
        np.savez(path, a=1)
        with pytest.raises(FileError, match=r"a\.npz"):
            LanguageModel.load(path)
        fastrnn.LSTM(2, 3).save(path)
        with pytest.raises(FileError, match="something else than a language model"):
            LanguageModel.load(path)
        with pytest.raises(FileNotFoundError):
            LanguageModel.load(tmp_path / "b.npz")

    def test_load_refuses_what_does_not_fit_together(self, tmp_path: Path) -> None:
        path, model = tmp_path / "a.npz", small()
        model.config["hidden_size"] = 10
        model.save(path)
        with pytest.raises(FileError, match="does not fit together"):
            LanguageModel.load(path)

    def test_check_output(self, tmp_path: Path) -> None:
        check_output(tmp_path / "new.npz")
        assert os.listdir(tmp_path) == []
        small().save(tmp_path / "old.npz")
        check_output(tmp_path / "old.npz")
        (tmp_path / "letter.txt").write_text("dear")
        with pytest.raises(FileError, match=r"letter\.txt exists and is no saved language model"):
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


class TestWordModel:
    def model(self, **options: Any) -> LanguageModel:
        return LanguageModel(Words.of(ENGLISH, 5), "gru", embedding_dim=5, hidden_size=9, rng=3, **options)

    def test_the_unknown_word_is_never_drawn(self) -> None:
        model = self.model()
        model.head.parameters()["bias"][0] = 50.0
        written = model.sample(60, "the elephant sat", rng=1)
        assert Words.UNKNOWN not in written
        assert written.startswith((" ", ".", "\n"))

    def test_file(self, tmp_path: Path) -> None:
        model = self.model()
        model.save(tmp_path / "a.npz")
        same_models(LanguageModel.load(tmp_path / "a.npz"), model)


class TestLineByLine:
    def test_nothing_passes_a_line_end(self) -> None:
        model = small("gru", line_by_line=True)
        ids = model.vocabulary.encode("the cat.\nthe dog.\nthe")
        lines = model.vocabulary.encode("the cat.\n"), model.vocabulary.encode("the dog.\n")
        (window,) = windows(ids, 1, 100, model.newline)
        y, _ = model.network(window.ids, reset=window.reset, embedding=model.table)
        alone = [model.network(line[:, None], embedding=model.table)[0] for line in lines]
        assert_same_bits(y[:18], np.concatenate(alone))
        assert model.nats_per_token(ids) == pytest.approx(model.loss_and_gradients(window)[0] / 20)

    def test_samples_too(self) -> None:
        """At a low temperature the likeliest characters come, each from its line alone."""
        model = small("lstm", line_by_line=True)
        model.head.parameters()["bias"][model.newline] += 0.6  # so that lines end
        ids = model.vocabulary.encode("the cat\ndog").tolist()
        for _ in range(40):
            reset = np.array([False, *(i == model.newline for i in ids[:-1])])
            y, _ = model.network(np.reshape(ids, (-1, 1)), reset=reset[:, None], embedding=model.table)
            ids.append(int(model.head(y[-1, 0]).argmax()))
        assert ids[11:].count(model.newline) > 1
        assert model.sample(40, "the cat\ndog", temperature=1e-6) == model.vocabulary.decode(ids[-40:])

    def test_a_text_of_one_line(self) -> None:
        with pytest.raises(TextError, match="no line end"):
            LanguageModel(Characters("abc"), line_by_line=True)


class TestNeighbours:
    def test_planted_groups_are_found(self) -> None:
        """Words that stand in the same places come to lie near each other."""
        rng = np.random.default_rng(0)
        groups = [
            ["cat", "dog", "horse", "mouse"],
            ["red", "green", "blue", "white"],
            ["runs", "sleeps", "eats", "sits"],
        ]
        lines = (" ".join(rng.choice(g) for g in (groups[1], groups[0], groups[2])) for _ in range(3000))
        text = "\n".join(lines)
        model = LanguageModel(Words.of(text, 99), "gru", embedding_dim=16, hidden_size=32, rng=0)
        ids = model.vocabulary.encode(text)
        adam = fastrnn.Adam(model.parameters(), lr=1e-2)
        for _ in range(4):
            for window in windows(ids, 20, 30):
                adam.step(model.loss_and_gradients(window)[2])
        known = neighbours.frequent(model, ids, 99)
        assert len(known) == 12
        vectors = neighbours.directions(model)
        place = {word: i for i, word in enumerate(model.vocabulary.tokens)}
        for group in groups:
            for word in group:
                near = neighbours.nearest(vectors, place[word], known, 3)
                assert {model.vocabulary.tokens[i] for i, _ in near} == set(group) - {word}
        points = neighbours.plane(vectors[known])
        assert points.shape == (12, 2)
        assert "cat" in neighbours.table_of_neighbours(model, ids)

    def test_few_words(self) -> None:
        model = LanguageModel(Words.of("a b", 9), rng=0, embedding_dim=1, hidden_size=1)
        assert "too few to compare" in neighbours.table_of_neighbours(model, model.vocabulary.encode("a b"))
        assert neighbours.plane(neighbours.directions(model)).shape == (3, 2)
