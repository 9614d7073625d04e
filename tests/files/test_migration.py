"""The Python blocks of docs/migration.md, run as they stand; those of the documentation's own run when it is built."""

from pathlib import Path

import pytest

from test_keras_files import keras  # noqa: F401 (a fixture)
from test_readme import python_blocks, run

PAGE = Path(__file__).parents[2] / "docs" / "migration.md"


@pytest.mark.filterwarnings("ignore")  # TorchScript is said to be deprecated
@pytest.mark.parametrize("flax", [False, True], ids=["PyTorch and Keras", "Flax"])
def test_blocks(keras: object, flax: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    pytest.importorskip("safetensors")
    if flax:
        pytest.importorskip("flax")
    monkeypatch.chdir(tmp_path)
    blocks = [block for block in python_blocks(PAGE.read_text(encoding="utf-8")) if "flax" not in block or flax]
    assert len(blocks) == 4 + flax
    run(blocks)
