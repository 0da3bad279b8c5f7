"""What `python -m bench.mutants` kept is about the code that there is, and leaves no question."""

import json
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SETTINGS = tomllib.loads((ROOT / "bench" / "mutants.toml").read_text())
RESULTS = json.loads((ROOT / "bench" / "results" / "mutants.json").read_text())


def test_kept_are_modules_that_can_be_run_again():
    assert RESULTS.keys() <= SETTINGS.keys()


@pytest.mark.parametrize("module", RESULTS)
def test_every_change_is_noticed_or_explained(module):
    settings, found = SETTINGS[module], RESULTS[module]
    reasons = settings.get("equivalent", {})
    assert sorted(set(found["left"])) == sorted(t for texts in reasons.values() for t in texts)
    assert found["noticed"] + len(found["left"]) == found["mutants"] > 0
    for test in settings["tests"]:
        assert (ROOT / test.split("::")[0]).exists()
