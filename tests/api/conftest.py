"""The library for C, and models opened in it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api_support import Library, Model, Options

import fastrnn


@pytest.fixture(scope="module")
def c() -> Library:
    return Library()


@pytest.fixture
def opened(c: Library, tmp_path: Path) -> Iterator[Any]:
    models = []

    def open_layers(layers: Any, options: Options | None = None) -> Model:
        path = tmp_path / f"{len(models)}.safetensors"
        fastrnn.save(path, layers)
        models.append(Model(c, path, options))
        return models[-1]

    yield open_layers
    for model in models:
        c.close(model.handle)
