"""One page for several studies: what became of every claim, then each study."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memtools.files import read_json, refuse_links, write_text
from memtools.report.page import svg_uri, template
from memtools.studies.claims import CLAIMS, Verdict
from memtools.studies.summary import Table
from memtools.studies.verdicts import verdict_table

__all__ = ["FinishedRun", "claims_in_words", "claims_of", "read_runs", "write_joined"]

SHOWN = 3
"""Figures of a study on the page; its own report has all."""


@dataclass(frozen=True)
class FinishedRun:
    """What a finished run folder says of itself.

    Attributes:
        path: The folder.
        config: Study, settings, versions and device.
        summary: The question, the sentences, and names, titles and captions of the figures.
        verdicts: What it came to.
    """

    path: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    verdicts: list[Verdict]

    @property
    def title(self) -> str:
        """Study and data set."""
        return f"{self.config['study']}, {self.config['settings']['dataset']}"

    @property
    def anchor(self) -> str:
        """Where it is on the page."""
        return self.title.replace(", ", "-")

    @property
    def sentences(self) -> list[list[str]]:
        """Topics and what is said about them."""
        return [sentence.split(": ", 1) for sentence in self.summary["sentences"]]

    @property
    def figures(self) -> list[tuple[str, str, str]]:
        """Title, caption and picture of the first figures."""
        return [
            (title, caption, svg_uri(self.path / "figures" / f"{name}.svg"))
            for name, title, caption in self.summary["figures"][:SHOWN]
        ]

    @property
    def table(self) -> Table | None:
        """The verdicts."""
        return verdict_table(self.verdicts) if self.verdicts else None


def read_runs(folders: Sequence[Path]) -> list[FinishedRun]:
    """The finished runs in some folders, in the order of the studies.

    Args:
        folders: Run folders, or folders that hold run folders.

    Returns:
        The runs.

    Raises:
        ValueError: If a folder holds none, or a file in it cannot be used.
    """
    from memtools.studies import STUDIES

    found = []
    for folder in folders:
        is_run = (folder / "config.json").exists()
        paths = [folder] if is_run else sorted(p.parent for p in folder.glob("*/config.json"))
        runs = [_read(path) for path in paths if (path / "summary.json").exists()]
        if not runs:
            raise ValueError(
                f"{folder} holds no finished run; name folders that memtools study has filled"
            )
        found += runs
    for run in found:
        if run.config["study"] not in STUDIES:
            raise ValueError(
                f"{run.path} is a run of the study {run.config['study']!r}, expected one of "
                f"{', '.join(STUDIES)}"
            )
    order = list(STUDIES)
    return sorted(found, key=lambda run: (order.index(run.config["study"]), run.title))


def _read(path: Path) -> FinishedRun:
    def content(name: str) -> Any:
        return read_json(path / f"{name}.json")

    try:
        verdicts = content("verdicts") if (path / "verdicts.json").exists() else []
        verdicts = [Verdict(**verdict) for verdict in verdicts]
        run = FinishedRun(path, content("config"), content("summary"), verdicts)
        _check(run)
        refuse_links(path)
        return run
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} holds a run that cannot be read ({error}); run it again"
        ) from error


def _check(run: FinishedRun) -> None:
    """Refuse a folder that a study has not filled: it may come from anybody."""
    config, summary = run.config, run.summary
    if not isinstance(config, dict) or not isinstance(summary, dict):
        raise TypeError("config.json and summary.json must hold names and values")
    kinds: list[tuple[str, Any, Any]] = [
        ("study", config["study"], str), ("settings", config["settings"], dict),
        ("dataset", config["settings"]["dataset"], str),
        ("seeds", config["settings"]["seeds"], list),
        ("versions", config["versions"], dict), ("device", config["device"], str),
        ("question", summary["question"], str), ("train_size", summary["train_size"], int),
        ("sentences", summary["sentences"], list), ("figures", summary["figures"], list),
        *(("a sentence", sentence, str) for sentence in summary["sentences"]),
        *(("a word on a figure", word, str) for words in summary["figures"] for word in words),
    ]  # fmt: skip
    for verdict in run.verdicts:
        kinds += [(name, getattr(verdict, name), str) for name in ("claim", "statement", "about")]
        kinds += [(n, getattr(verdict, n), float | int | None) for n in ("effect", "low", "high")]
        if verdict.verdict not in ("holds", "does not hold", "undecided"):
            raise ValueError(f"{verdict.verdict!r} is no verdict")
        if (verdict.low is None) != (verdict.high is None):
            raise ValueError("an interval has one end")
    for name, value, kind in kinds:
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be of type {kind}, got {value!r}")
    if any(": " not in sentence for sentence in summary["sentences"]):
        raise ValueError("a sentence has no topic")
    for name, _, _ in summary["figures"]:
        if not re.fullmatch(r"[\w-]+", name):  # a path would lead out of the folder
            raise ValueError(f"{name!r} cannot be the name of a figure")


def claims_in_words(runs: Sequence[FinishedRun]) -> list[str]:
    """A line for each claim: what it says, and what became of it in each run."""
    return [
        f"{claim}: {sentence} " + "; ".join(f"{run.title}: {words}" for run, words, _ in outcomes)
        for claim, sentence, outcomes in claims_of(runs)
    ]


def write_joined(runs: Sequence[FinishedRun], path: Path) -> Path:
    """Write the page, which needs no other file and no network.

    Args:
        runs: What :func:`read_runs` gave.
        path: The file.

    Returns:
        The same path.
    """
    page = template("joined").render(dataset=None, runs=runs, claims=claims_of(runs))
    write_text(path, page)
    return path


def claims_of(
    runs: Sequence[FinishedRun],
) -> list[tuple[str, str, list[tuple[FinishedRun, str, str]]]]:
    """What became of every claim.

    Args:
        runs: What :func:`read_runs` gave.

    Returns:
        Claim, sentence, and for each run that is about it: the run, what came out in words, and
        the kind of that, ``"holds"``, ``"does-not-hold"``, ``"undecided"`` or ``"mixed"``.
    """
    found = []
    for claim, sentence in CLAIMS.items():
        outcomes = []
        for run in runs:
            counts = Counter(v.verdict for v in run.verdicts if v.claim == claim)
            if counts:
                outcomes.append((run, _in_words(counts), _kind(counts)))
        if outcomes:
            found.append((claim, sentence, outcomes))
    return found


def _in_words(counts: Counter[str]) -> str:
    total = counts.total()
    if len(counts) == 1:
        (word,) = counts
        several = {"holds": "all {} hold", "does not hold": "none of {} holds"}
        return word if total == 1 else several.get(word, "all {} undecided").format(total)
    plural = {"holds": "hold", "does not hold": "do not", "undecided": "undecided"}
    return ", ".join(f"{counts[word]} {plural[word]}" for word in plural if counts[word])


def _kind(counts: Counter[str]) -> str:
    return next(iter(counts)).replace(" ", "-") if len(counts) == 1 else "mixed"
