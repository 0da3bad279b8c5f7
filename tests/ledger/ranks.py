"""Processes of :mod:`test_processes`, over gloo: each records its own updates in one folder."""

import sys
from typing import Any

import torch
from torch import distributed, multiprocessing

from memtools import Ledger

N = 20


def parts(size, step):
    """Which examples each process records at a step: uneven, and none on the last process."""
    order = torch.randperm(N, generator=torch.Generator().manual_seed(step))
    if size == 1:
        return [order]
    cuts = [order[:11], order[11:], order[:0]] if step % 2 else [order[:4], order[4:], order[:0]]
    return [*cuts[: size - 1], torch.cat(cuts[size - 1 : -1])] if size == 2 else cuts


def values(step, index) -> dict[str, Any]:
    late = {"late": index / 7} if step >= 3 else {}
    return {"loss": index + step / 10, **late}


def work(rank, size, folder, begin, end, checkpoint):
    torch.set_num_threads(1)
    store = f"file://{folder}-store{begin}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    ledger = Ledger(N, folder, resume=begin > 0)
    if begin:
        ledger.load_state_dict({"step": torch.tensor(checkpoint)})
        distributed.barrier()
    for step in range(begin, end):
        index = parts(size, step)[rank]
        if len(index):
            ledger.update(index, step=step, **values(step, index))
    distributed.destroy_process_group()


def main():
    size, folder, begin, end, checkpoint = sys.argv[1:]
    numbers = (int(x) for x in (begin, end, checkpoint))
    context = multiprocessing.get_context("fork")
    arguments = (int(size), folder, *numbers)
    processes = [context.Process(target=work, args=(r, *arguments)) for r in range(int(size))]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))


if __name__ == "__main__":
    main()
