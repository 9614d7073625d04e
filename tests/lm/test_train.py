"""The job of `fastrnn train`: it learns, stops, goes on to the same bits, and refuses what will not do."""

import dataclasses
import itertools
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrnn
from fastrnn import FileError, storage
from fastrnn.lm import checkpoint
from fastrnn.lm.model import LanguageModel
from fastrnn.lm.report import Report
from fastrnn.lm.text import TextError, Window
from fastrnn.lm.training import DivergedError, Options, resume, train
from support import CHINESE, ENGLISH, same_models


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
            {"cell": "rnn", "optimizer": "sgd"},
        ],
    )
    def test_it_learns(self, options: Options, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
        outcome = train(dataclasses.replace(options, **{"epochs": 8, **changes}))
        assert outcome.loss < 0.6 * math.log(len(set(ENGLISH)))
        assert outcome.stopped is None
        same_models(LanguageModel.load(options.output), outcome.model)
        assert not os.path.exists(checkpoint.path_beside(options.output))
        printed = capsys.readouterr().out
        assert f"{len(ENGLISH):,} characters, {len(set(ENGLISH))} distinct" in printed
        assert f"result  {outcome.loss / math.log(2):.3f} bits per character" in printed
        assert max(map(len, printed.split("sample ")[0].splitlines()[4:])) <= 78

    def test_chinese(self, options: Options) -> None:
        assert options.text is not None
        Path(options.text).write_text(CHINESE, encoding="utf-8")
        outcome = train(dataclasses.replace(options, epochs=12, prompt="我要"))
        assert outcome.loss < 1.4
        assert outcome.model.vocabulary.tokens == sorted(set(CHINESE))

    def test_the_seed_decides(self, options: Options) -> None:
        one, two = train(options).model, train(options).model
        same_models(one, two)
        other = train(dataclasses.replace(options, seed=1)).model
        assert not np.array_equal(other.parameters()[0]["weight"], one.parameters()[0]["weight"])

    def test_steps(self, options: Options, capsys: pytest.CaptureFixture[str]) -> None:
        assert train(dataclasses.replace(options, steps=3)).progress.steps == 3
        assert "3/3" in capsys.readouterr().out

    def test_divergence_saves_nothing(self, options: Options) -> None:
        with (
            pytest.raises(DivergedError, match=r"(the loss is (nan|inf)|the validation loss is no number) at step"),
            np.errstate(all="ignore"),
        ):
            train(dataclasses.replace(options, optimizer="sgd", lr=1e38, clip=1e38))
        assert not os.path.exists(options.output)

    def test_words(self, options: Options, capsys: pytest.CaptureFixture[str]) -> None:
        outcome = train(dataclasses.replace(options, level="word", epochs=8, vocabulary=9, batch=2, seq_len=8))
        printed = capsys.readouterr().out
        assert outcome.loss < 0.6 * math.log(10)
        assert "600 words, 10 distinct, 0.0% unknown" in printed
        assert f"result  perplexity {math.exp(outcome.loss):.1f} per word on the last 60 words" in printed
        assert "near    " in printed
        assert max(map(len, printed.split("near ")[0].splitlines()[4:])) <= 78

    def test_the_best_is_kept_and_patience_ends(self, options: Options, capsys: pytest.CaptureFixture[str]) -> None:
        """With rates that spoil what was learned the model of the lowest validation loss is the one that is saved."""
        outcome = train(dataclasses.replace(options, epochs=30, lr=0.3, clip=1e9, patience=2, cell="rnn"))
        losses = [loss for _, loss in outcome.progress.validations]
        assert outcome.stopped == "no better"
        assert outcome.loss == min(losses) == losses[-3]
        assert LanguageModel.load(options.output).nats_per_token(
            outcome.model.vocabulary.encode(ENGLISH)[-192:], batch=1
        ) == pytest.approx(outcome.loss)
        assert "stopped after" in capsys.readouterr().out

    @pytest.mark.parametrize("validation", [0.02, 0.5])
    def test_validation(self, options: Options, validation: float, capsys: pytest.CaptureFixture[str]) -> None:
        train(dataclasses.replace(options, validation=validation))
        assert f"on the last {int(len(ENGLISH) * validation):,} characters" in capsys.readouterr().out

    def test_pictures(self, options: Options, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib")
        train(dataclasses.replace(options, plots=True))
        for name in ("model.loss.png", "model.embedding.png"):
            assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")

    def test_pictures_without_matplotlib(self, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
        with pytest.raises(ImportError, match=r"pip install 'fastrnn\[plot\]'"):
            train(dataclasses.replace(options, plots=True))

    @pytest.mark.parametrize(
        ("changes", "error", "words"),
        [
            ({"batch": 1000}, TextError, "too short: 1,728 of its 1,920 characters.*needs 16,001; make"),
            (
                {"prompt": "Zebra!"},
                TextError,
                r"the prompt cannot be read: 4 of .*: '!', 'Z', 'b', 'r'",
            ),
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


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Send the process a Ctrl-C in the middle of a step, counted from 1."""
    learn = LanguageModel.loss_and_gradients
    count = itertools.count(1)

    def with_signal(self: LanguageModel, window: Window, state: Any = None) -> Any:
        if next(count) == step:
            os.kill(os.getpid(), signal.SIGINT)
        return learn(self, window, state)

    monkeypatch.setattr(LanguageModel, "loss_and_gradients", with_signal)


class TestResuming:
    CHANGES: tuple[dict[str, Any], ...] = (
        {},
        {"cell": "gru", "layers": 2, "dropout": 0.3},
        {"optimizer": "sgd", "reset_on_newline": True},
        {"level": "word", "batch": 2, "seq_len": 8},
    )

    @pytest.mark.parametrize("step", [1, 7, 27, 28, 53])
    @pytest.mark.parametrize("changes", CHANGES, ids=str)
    def test_to_the_same_bits(
        self, options: Options, changes: dict[str, Any], step: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Stopped in the first step, within an epoch, at its end and shortly before the end of all."""
        options = dataclasses.replace(options, epochs=2, **changes)
        whole = train(options)
        os.unlink(options.output)
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            cut = train(options)
        beside = checkpoint.path_beside(options.output)
        assert cut.stopped == "interrupted"
        assert cut.progress.steps == step
        assert not os.path.exists(options.output)
        resumed = resume(beside)
        same_models(resumed.model, whole.model)
        assert resumed.progress.losses == whole.progress.losses
        assert resumed.progress.validations == whole.progress.validations
        assert not os.path.exists(beside)

    def test_twice_and_from_a_regular_checkpoint(self, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = train(options)
        beside = checkpoint.path_beside(options.output)
        kept = dataclasses.replace(options, save_every=1e-9)
        saved = checkpoint.save

        class Killed(BaseException):
            pass

        def save_and_die(*arguments: Any) -> None:
            saved(*arguments)
            if arguments[1].steps == deadly:
                raise Killed

        deadly = 0
        for step, go in ((9, lambda: train(kept)), (31, lambda: resume(beside))):
            deadly = step
            with monkeypatch.context() as patch:
                patch.setattr(checkpoint, "save", save_and_die)
                with pytest.raises(Killed):
                    go()
        same_models(resume(beside).model, whole.model)

    def test_with_more_epochs(self, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
        stop_at(monkeypatch, 3)
        train(options)
        monkeypatch.undo()
        assert len(resume(checkpoint.path_beside(options.output), epochs=3).progress.validations) == 3

    def test_a_full_disk_does_not_end_the_training(
        self, options: Options, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device", "model.checkpoint.npz")

        monkeypatch.setattr(checkpoint, "save", full)
        assert train(dataclasses.replace(options, save_every=1e-9)).stopped is None
        assert "note: no checkpoint was written: No space left on device" in capsys.readouterr().out

    def test_a_model_that_was_there_stays_until_there_is_another(
        self, options: Options, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        train(options)
        before = Path(options.output).read_bytes()
        stop_at(monkeypatch, 3)
        train(dataclasses.replace(options, seed=1))
        assert Path(options.output).read_bytes() == before

    def test_nothing_but_the_own_checkpoint_is_replaced(
        self, options: Options, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        other = dataclasses.replace(options, output=str(tmp_path / "other.npz"))
        for one in (options, other):
            with monkeypatch.context() as patch:
                stop_at(patch, 3)
                train(one)
        with pytest.raises(FileError, match=r"other\.checkpoint\.npz is of an unfinished training"):
            resume(checkpoint.path_beside(options.output), output=other.output)
        (tmp_path / "a.checkpoint.txt").write_text(ENGLISH)
        with pytest.raises(FileError, match=r"a\.checkpoint\.txt exists and is no checkpoint; choose another --output"):
            train(dataclasses.replace(options, output=str(tmp_path / "a.txt")))

    def test_output_that_nobody_reads_leaves_a_checkpoint(
        self, options: Options, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = train(options)

        def broken(*_: Any) -> None:
            raise BrokenPipeError(32, "Broken pipe")

        with monkeypatch.context() as patch:
            patch.setattr(Report, "validation", broken)
            with pytest.raises(BrokenPipeError):
                train(options)
        same_models(resume(checkpoint.path_beside(options.output)).model, whole.model)

    def test_divergence_keeps_the_best_before(self, options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
        learn, count = LanguageModel.loss_and_gradients, itertools.count(1)

        def infinite(self: LanguageModel, window: Window, state: Any = None) -> Any:
            loss, *rest = learn(self, window, state)
            return math.inf if next(count) == 40 else loss, *rest

        monkeypatch.setattr(LanguageModel, "loss_and_gradients", infinite)
        with pytest.raises(DivergedError, match="the loss is inf at step 40"):
            train(options)
        assert os.path.exists(options.output)

    def test_what_is_refused(self, options: Options, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        with monkeypatch.context() as patch:
            stop_at(patch, 3)
            train(options)
        beside = checkpoint.path_beside(options.output)
        with pytest.raises(FileError, match=r"unfinished training: go on with fastrnn train --resume .*, or delete it"):
            train(options)
        same_models(LanguageModel.load(beside), LanguageModel.load(beside))  # it holds the model as it was
        with pytest.raises(FileError, match="is the checkpoint of an unfinished training; choose another --output"):
            train(dataclasses.replace(options, output=beside))
        LanguageModel.load(beside).save(tmp_path / "finished.npz")
        with pytest.raises(FileError, match="is no checkpoint"):
            resume(str(tmp_path / "finished.npz"))
        with pytest.raises(FileNotFoundError):
            resume(str(tmp_path / "none.npz"))

        description, arrays = storage.read(beside)
        whole = Path(beside).read_bytes()

        def rewritten(change: Any) -> str:
            copy = {key: value for key, value in description.items() if key != "format"}
            copy["checkpoint"] = {**description["checkpoint"]}
            copy["checkpoint"]["options"] = {**description["checkpoint"]["options"]}
            kept = dict(arrays)
            change(copy["checkpoint"], kept)
            storage.write(beside, copy, kept)
            return beside

        def says(words: str, change: Any) -> None:
            with pytest.raises(FileError, match=words):
                resume(rewritten(change))

        says("other options than this version knows", lambda c, a: c["options"].update(colour="blue"))
        says("does not fit together", lambda c, a: a.pop("optimizer/first_moment.0.weight"))
        says("does not fit together", lambda c, a: a.update({"head.weight": a["head.weight"][1:]}))
        says("does not fit together: the state has shape", lambda c, a: a.update({"state/0": a["state/0"][:, 1:]}))
        says("does not fit together", lambda c, a: a.pop("history/losses"))
        says("does not fit together", lambda c, a: c.update(generator={"bit_generator": "none"}))
        says("does not fit together: there are 1 states", lambda c, a: a.pop("state/1"))
        says("does not fit together: window 1,000", lambda c, a: c.update(window=1000))
        for name, value in (("level", "foo"), ("batch", "x"), ("text", 5), ("seq_len", 0), ("dropout", -1)):
            says(f"options that cannot be: {name}=", lambda c, a, n=name, v=value: c["options"].update({n: v}))
        says("no checkpoint of a training", lambda c, a: c.update(options=[1]))
        Path(beside).write_bytes(whole[:-300])
        with pytest.raises(FileError, match=r"checkpoint\.npz"):
            resume(beside)
        Path(beside).write_bytes(whole)
        assert options.text is not None
        Path(options.text).write_text(ENGLISH[::-1])
        with pytest.raises(FileError, match="made with another text: it has changed since"):
            resume(beside)
