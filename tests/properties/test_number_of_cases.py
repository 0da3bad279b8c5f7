"""How many cases the properties are tried on."""

import re
from pathlib import Path


def test_there_are_ten_thousand_cases():
    files = Path(__file__).parent.glob("test_*.py")
    counts = [
        int(count)
        for file in files
        for count in re.findall(r"@settings\(max_examples=(\d+)\)", file.read_text())
    ]
    assert sum(counts) >= 10_000
