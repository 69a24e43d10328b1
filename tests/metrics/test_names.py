"""Scores are explained where people look for them."""

import re
from pathlib import Path

from megabert.metrics.names import MEANINGS, meaning

PAGE = Path(__file__).parents[2] / "docs" / "scores.md"


def test_the_page_of_scores_says_what_reports_say():
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGE.read_text(), re.MULTILINE))
    assert rows == {name: text.replace("|", "/") for name, text in MEANINGS.items()}
    assert meaning("of nobody") == ""
