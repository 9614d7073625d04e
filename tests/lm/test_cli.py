"""The command line: what it prints, what it returns, and that one line says what is wrong."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastrnn
from fastrnn.cli import COMMANDS, main
from fastrnn.lm.model import LanguageModel
from fastrnn.lm.text import Characters
from support import complaint

TEXT = "the cat sat on the mat.\n" * 100
FAST = ["--hidden", "8", "--embedding", "4", "--batch", "4", "--seq-len", "8", "--steps", "5", "--sample", "20"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


class TestInfo:
    def test_function(self) -> None:
        info = fastrnn.info()
        assert info["version"] == fastrnn.__version__
        assert info["isa"] in info["isas"]
        assert info["fewer_bits"].startswith(info["isa"])
        assert info["threads"] == fastrnn.get_num_threads()
        assert info["numpy"] == np.__version__
        assert info["python"] == ".".join(map(str, sys.version_info[:3]))
        with fastrnn.threads(7):
            assert fastrnn.info()["threads"] == 7

    def test_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["info", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == fastrnn.info()

    def test_words(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["info"]) == 0
        printed = capsys.readouterr().out
        assert printed.startswith("version")
        assert len(printed.splitlines()) == len(fastrnn.info())

    def test_as_a_module(self) -> None:
        done = subprocess.run([sys.executable, "-m", "fastrnn", "info", "--json"], capture_output=True, check=True)
        assert json.loads(done.stdout)["version"] == fastrnn.__version__


class TestTrain:
    def test_trains_and_saves(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for _ in range(2):  # the second run replaces the model of the first
            assert main(["train", "text.txt", *FAST]) == 0
            printed = capsys.readouterr().out
            assert "saved   model.npz" in printed
            assert "bits per character" in printed
        assert LanguageModel.load("model.npz").vocabulary.tokens == sorted(set(TEXT))

    def test_built_in_text(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["train", *FAST, "--output", "other.npz"]) == 0
        assert "pydoc_data.topics of Python" in capsys.readouterr().out
        assert Path("other.npz").exists()

    def test_a_sample_that_the_terminal_cannot_show(self, here: Path) -> None:
        Path("text.txt").write_text("\N{CAT}\x1b" * 300, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "fastrnn", "train", "text.txt", *FAST],
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            capture_output=True,
            check=True,
        )
        assert b"\\U0001f408" in done.stdout
        assert b"\x1b" not in done.stdout

    @pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
    def test_ctrl_c(self, here: Path) -> None:
        command = [sys.executable, "-u", "-m", "fastrnn", "train", "--epochs", "1000000"]
        # A parent started in the background ignores SIGINT, and its children would too.
        ready = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        pipe = subprocess.PIPE
        with subprocess.Popen([*command, *FAST[:8]], stdout=pipe, stderr=pipe, preexec_fn=ready) as process:
            assert process.stdout is not None
            line = b""
            while not re.search(rb"\d+/\d+", line):  # the first line of progress
                line = process.stdout.readline()
                assert line or process.poll() is None
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert b"stopped after" in out
        assert err == b""
        assert LanguageModel.load("model.checkpoint.npz").config["hidden_size"] == 8
        assert b"go on with fastrnn train --resume model.checkpoint.npz" in out
        assert not Path("model.npz").exists()
        resumed = [sys.executable, "-m", "fastrnn", "train", "--resume", "model.checkpoint.npz", "--epochs", "1"]
        done = subprocess.run([*resumed, "--sample", "0"], capture_output=True, check=True)
        assert b"bits per character" in done.stdout
        assert sorted(os.listdir()) == ["model.npz", "text.txt"]

    def test_resume_takes_the_rest_from_the_checkpoint(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = "leave out --batch, --hidden, TEXT"
        assert words in complaint(capsys, "train", "text.txt", "--hidden", "8", "--batch", "2", "--resume", "c.npz")
        assert "c.npz: No such file" in complaint(capsys, "train", "--resume", "c.npz")


class TestSample:
    @pytest.fixture
    def model(self, here: Path) -> str:
        alphabet = sorted(set(TEXT))
        LanguageModel(Characters("".join(alphabet)), embedding_dim=4, hidden_size=6, rng=0).save("model.npz")
        return "model.npz"

    def test_it_writes(self, model: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["sample", model, "--prompt", "the", "--length", "30", "--seed", "5"]) == 0
        printed = capsys.readouterr().out
        expected = LanguageModel.load(model).sample(30, "the", temperature=0.7, rng=5)
        assert printed == f"the{expected}\n"
        assert main(["sample", model, "--seed", "5", "--temperature", "2"]) == 0
        assert len(capsys.readouterr().out) == 401

    def test_it_writes_at_once(self, model: str) -> None:
        """Without an end, until nobody reads on; what is drawn is not kept back in a buffer."""
        command = [sys.executable, "-m", "fastrnn", "sample", model, "--length", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert len(process.stdout.read(50)) == 50
            process.stdout.close()
            assert process.stderr is not None
            assert process.stderr.read() == b""
        assert process.returncode == 1

    def test_bad_input(self, model: str, capsys: pytest.CaptureFixture[str]) -> None:
        says = functools.partial(complaint, capsys, "sample")
        assert "2 of the characters are not among the 12 known: 'O', 'k'" in says(model, "--prompt", "Ok")
        assert "the prompt is empty; give at least one character" in says(model, "--prompt", "")
        LanguageModel(Characters("abc"), embedding_dim=4, hidden_size=6).save("abc.npz")
        assert main(["sample", "abc.npz", "--length", "5"]) == 0
        assert len(capsys.readouterr().out) == 6
        assert "expected a number above 0" in says(model, "--temperature", "0")
        assert "no.npz: No such file" in says("no.npz")
        assert "text.txt is not a file that a fastrnn layer was saved to" in says("text.txt")
        fastrnn.GRU(2, 3).save("gru.npz")
        assert "gru.npz holds something else than a language model" in says("gru.npz")
        whole = Path(model).read_bytes()
        Path(model).write_bytes(whole[: len(whole) // 2])
        assert "model.npz" in says(model)


class TestBadInput:
    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (b"", "text.txt is empty"),
            (b"caf\xe9", "text.txt is not UTF-8: byte 0xe9 at offset 3"),
            (b"short", "text.txt is too short: 3 of its 5 characters"),
        ],
    )
    def test_texts(self, here: Path, capsys: pytest.CaptureFixture[str], data: bytes, words: str) -> None:
        Path("text.txt").write_bytes(data)
        assert f"fastrnn train: error: {words}" in complaint(capsys, "train", "text.txt")

    def test_unreadable_text(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "no.txt: No such file" in complaint(capsys, "train", "no.txt")
        assert "directory" in complaint(capsys, "train", ".")

    def test_unwritable_output(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for output in ("no/model.npz", "text.txt", ".", "text.txt/model.npz", ""):
            assert f"{output}" in complaint(capsys, "train", "text.txt", *FAST, "--output", output)
        assert Path("text.txt").read_text() == TEXT

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--hidden", "0"], "argument --hidden: got '0', expected a whole number of at least 1"),
            (["--hidden", "many"], "argument --hidden: got 'many'"),
            (["--layers", "2000"], "argument --layers: got '2000', expected a whole number from 1 to 1024"),
            (["--output", "m.npz/"], "names no file; choose another --output"),
            (["--hidden", "1" + "0" * 12], "the parameters would take"),
            (["--threads", "5000"], "expected a whole number from 1 to 1024"),
            (["--lr", "nan"], "argument --lr: got 'nan', expected a number above 0"),
            (["--clip", "-1"], "argument --clip: got '-1'"),
            (["--dropout", "1"], "argument --dropout: got '1', expected a number from 0 to below 1"),
            (["--cell", "transformer"], "argument --cell: invalid choice"),
            (["--prompt", "Ω"], "is not among the"),
            (["--batch", "10000"], "make one of the two smaller"),
            (["--no-such-option"], "unrecognized arguments: --no-such-option"),
        ],
    )
    def test_options(self, here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
        assert words in complaint(capsys, "train", "text.txt", *arguments)

    def test_commands(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "invalid choice: 'fly'" in complaint(capsys, "fly")
        assert "required: COMMAND" in complaint(capsys)

    def test_environment(self, here: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "fastrnn", "info"],
            env={**os.environ, "FASTRNN_NUM_THREADS": "many"},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.startswith(b"fastrnn: error: FASTRNN_NUM_THREADS is 'many'")
        assert done.stderr.count(b"\n") == 1

    def test_divergence_is_a_failure(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        rates = ["--optimizer", "sgd", "--lr", "1e38", "--clip", "1e38"]
        with np.errstate(all="ignore"):
            assert main(["train", "text.txt", *FAST, *rates]) == 1
        assert "the training has diverged" in capsys.readouterr().err
        assert not Path("model.npz").exists()


class TestHelp:
    @pytest.mark.parametrize("command", [[], *([one.name] for one in COMMANDS)])
    def test_fits_the_terminal(
        self, command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as leaving:
            main([*command, "--help"])
        assert leaving.value.code == 0
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 80

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["--version"])
        assert capsys.readouterr().out == f"fastrnn {fastrnn.__version__}\n"
