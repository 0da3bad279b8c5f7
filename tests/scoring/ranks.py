"""A process of :mod:`test_ranks`, one of several under torchrun; writes down what it did."""

import json
import os
import sys
from pathlib import Path

from memtools.scoring import score
from tests.scoring import factories

CHUNK_SIZES = {"begun": 4, "uneven": 8, "fewer": 30, "other": 7}
"""Of each run; the last goes on in a folder that has another."""


def main(folder: Path) -> None:
    model, data = factories.model(), factories.data()
    done = {}
    for name, size in CHUNK_SIZES.items():
        options = {**factories.SEARCH, "batch_size": 2, "chunk_size": size}
        try:
            result = score(model, data, folder / name, **options)
            done[name] = [result.chunks, result.examples]
        except ValueError as error:
            done[name] = str(error)
    report = f"{os.environ['WORLD_SIZE']}-{os.environ['RANK']}.json"
    (folder / report).write_text(json.dumps(done))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
