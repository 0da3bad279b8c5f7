"""What the study of pruning came to: tables, verdicts, and sentences."""

from memtools.studies.conditions import Condition
from memtools.studies.data import Data
from memtools.studies.folder import RunFolder
from memtools.studies.pruning.claims import detection_claims, pruning_claims
from memtools.studies.pruning.config import CONDITIONS, Config
from memtools.studies.pruning.methods import METHODS
from memtools.studies.pruning.outcomes import Outcomes, outcomes_of
from memtools.studies.pruning.sentences import points, sentences
from memtools.studies.summary import Summary, Table, percent
from memtools.studies.verdicts import verdict_table, write_verdicts

__all__ = ["summarise"]

COLUMNS = (
    "dropped",
    "accuracy",
    "hardest, over random",
    "easiest, over random",
    "AUROC",
    "corrupted among hardest",
)


def summarise(folder: RunFolder, config: Config, data: Data) -> Summary:
    """Read a finished run folder, and write ``verdicts.json`` into it.

    Args:
        folder: The folder of the study.
        config: Its settings.
        data: Its data.

    Returns:
        A summary; its outcomes are :class:`Outcomes`. Its table of verdicts has those on the loss
        sensitivity, the file has those on the other scores as well.
    """
    outcomes = outcomes_of(folder.rows(), config)
    verdicts = [*pruning_claims(outcomes), *detection_claims(outcomes)]
    write_verdicts(folder.path / "verdicts.json", verdicts)
    title = f"{config.dataset}, {len(data.train):,} training examples"
    tables = [_table(outcomes, condition, title) for condition in CONDITIONS]
    own = verdict_table([verdict for verdict in verdicts if verdict.claim == "C9"])
    return Summary(outcomes, [*tables, own], list(sentences(outcomes, verdicts)))


def _table(outcomes: Outcomes, condition: Condition, title: str) -> Table:
    share = outcomes.config.judged_share(condition)
    random = outcomes.numbers(condition, "random", None, share)
    found = percent(random["corrupted_dropped"]) if condition.labels else ""
    rows = [
        ["none", percent(outcomes.accuracy(condition, "full")), "", "", "", ""],
        ["random", percent(random["validation_accuracy"]), "", "", "", found],
    ]
    for score, method in METHODS.items():
        hardest = outcomes.numbers(condition, "hardest", score, share)
        gains = [
            points(outcomes.gain(condition, kind, score, share)) for kind in ("hardest", "easiest")
        ]
        area = found = ""
        if condition.labels:
            area = f"{outcomes.area(condition, score).mean():.3f}"
            found = percent(hardest["corrupted_dropped"])
        rows.append([method.title, percent(hardest["validation_accuracy"]), *gains, area, found])
    return Table(f"{title}, {condition.title}: {percent([share])} dropped", COLUMNS, rows)
