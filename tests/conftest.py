"""Fixtures and settings of the whole suite; what the tests call by name stands in support.py."""

import os

import hypothesis
import pytest

from fastrnn import _core
from support import KNOWN_ISAS

hypothesis.settings.register_profile("default", deadline=None, max_examples=60)
hypothesis.settings.register_profile("ci", parent=hypothesis.settings.get_profile("default"), derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(autouse=True, scope="session")
def _team_even_when_crowded() -> None:
    """Threads are tested as asked for, whatever else the machine does."""
    _core.yield_when_crowded(False)


@pytest.fixture(params=KNOWN_ISAS, scope="session")
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set of this architecture's kernels; what this machine lacks shows as skipped."""
    name: str = request.param
    if name not in _core.isas():
        pytest.skip(f"this machine or this build has no {name}; it has {', '.join(_core.isas())}")
    return name
