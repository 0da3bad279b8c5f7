"""The table of the ledger's costs."""

import json

from bench.kept import RESULTS


def page() -> str:
    found = json.loads((RESULTS / "ledger.json").read_text())
    update, step = found["update_milliseconds"], found["step_milliseconds"]
    spread = f"{update['p20']:.2f} to {update['p80']:.2f}"
    rows = [
        ("an update of a batch", f"{update['median']:.2f} ms ({spread})"),
        ("a training step of resnet18 on 32 x 32 images", f"{step['median']:,.0f} ms"),
        ("share of the step", f"{found['share_of_a_step']:.3%}"),
        ("memory that updates take in an epoch", f"{found['memory_mib']:.0f} MiB"),
        ("folder", f"{found['folder_mib']:,.0f} MiB"),
        ("all scores", f"{found['scores_seconds']:.0f} s"),
        ("the table of scores", f"{found['scores_mib']:.0f} MiB"),
        (
            "memory at their peak, beside the table and mapped files",
            f"{found['scores_memory_mib'] - found['scores_mib']:.0f} MiB",
        ),
    ]  # fmt: skip
    lines = ["| what | cost |", "| --- | ---: |"]
    lines += [f"| {name} | {cost} |" for name, cost in rows]
    return "\n".join(
        [
            *lines,
            "",
            f"{found['num_examples']:,} examples, {found['epochs']} epochs, "
            f"{found['presentations']:,} presentations of five float16 scores each, batches of "
            f"{found['batch']:,}. torch {found['torch']}, {found['threads']} thread of "
            f"{found['processor']}, commit {found['commit'][:7]}.",
        ]
    )
