"""The README's Python examples, run as they stand, one after the other in one namespace."""

import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parent.parent / "README.md"


def python_blocks(text: str) -> list[str]:
    """The fenced blocks marked python, each preceded by empty lines so that tracebacks name the README's line."""
    blocks, start = [], None
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line == "```python":
            start = number + 1
        elif line == "```" and start is not None:
            blocks.append("\n" * start + "\n".join(lines[start:number]))
            start = None
    return blocks


def run(blocks: list[str]) -> None:
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, README, "exec"), namespace)


BLOCKS = python_blocks(README.read_text(encoding="utf-8"))


def test_every_python_example_runs() -> None:
    blocks = [block for block in BLOCKS if "import torch" not in block]
    assert blocks
    run(blocks)


def test_the_example_with_pytorch_runs(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    run([block for block in BLOCKS if "import torch" in block])
    assert capsys.readouterr().out.startswith("fastrnn runs 1 of 1 recurrent modules\n  1  LSTM(64, 128, ")


@pytest.mark.filterwarnings("ignore")  # compilers and exporters of PyTorch warn of their own
@pytest.mark.parametrize("page", ["pytorch.md", "onnx.md"])
def test_the_code_of_pages_about_other_libraries_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    run(python_blocks((README.parent / "docs" / page).read_text(encoding="utf-8")))


def test_every_link_of_the_readme_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)|src(?:set)?=\"([^\"]+)", README.read_text(encoding="utf-8"))
    assert len(links) > 15
    assert [link for pair in links for link in pair if link and not (README.parent / link).exists()] == []
