"""Score in a process that is killed again and again; prints how often it was."""

import os
import random
import signal
import sys
import time

from memtools.scoring import score
from tests.scoring import factories

KILLS = 12


def main(out: str, seed: int) -> int:
    moments = random.Random(seed)
    model, data = factories.model(), factories.slow_data()
    kills = 0
    while True:
        child = os.fork()  # which spares each of them the import of torch
        if child == 0:
            score(model, data, out, **factories.SEARCH, batch_size=2, chunk_size=4)
            os._exit(0)
        if kills < KILLS:
            time.sleep(moments.uniform(0, 0.4))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return kills
        kills += 1


if __name__ == "__main__":
    print(main(sys.argv[1], int(sys.argv[2])))
