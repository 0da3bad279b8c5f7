from typing import Any

import pytest

from memtools.scoring import score
from tests.scoring import factories

# Machinery, not tests.
collect_ignore = ["factories.py", "killed.py", "ranks.py"]

SIZES = {"batch_size": 2, "chunk_size": 4}


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """A function that gives the folder of one process that nothing interrupts."""
    made = {}

    def at(chunk_size):
        if chunk_size not in made:
            made[chunk_size] = tmp_path_factory.mktemp("undisturbed") / "out"
            sizes: dict[str, Any] = SIZES | {"chunk_size": chunk_size}
            score(
                factories.model(),
                factories.data(),
                made[chunk_size],
                **factories.SEARCH,
                **sizes,
            )
        return made[chunk_size]

    return at


@pytest.fixture
def filled(tmp_path):
    """A folder of scores that come fast, and a function that goes on with it."""

    def go_on(model=None, data=None, **options):
        settings: dict[str, Any] = {"scores": ["loss", "correct"]} | SIZES | options
        model = factories.model() if model is None else model
        data = factories.data() if data is None else data
        return score(model, data, tmp_path / "out", **settings)

    go_on()
    return tmp_path / "out", go_on


@pytest.fixture(scope="session")
def contents():
    """A function that gives the bytes of every chunk of a folder by name."""
    return lambda folder: {p.name: p.read_bytes() for p in sorted(folder.glob("*.parquet"))}
