"""What all tables of measurements have in common: how a missing column is told, and free text is searched.

Pinned by tests/studies/test_columns.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def missing_columns(missing: Sequence[str]) -> str:
    """Start of the message about columns that a table lacks: all of them.

    >>> missing_columns(["op"]), missing_columns(["op", "gpus"])
    ("column 'op' is missing", "columns 'op', 'gpus' are missing")
    """
    names = ", ".join(map(repr, missing))
    return f"column{'s' * (len(missing) > 1)} {names} {'is' if len(missing) == 1 else 'are'} missing"


def names_any(words: Iterable[str], text: str) -> bool:
    """Whether a text holds one of these words, whatever numbers or plural are at its ends: `NVLink4`, `NICs`.

    >>> names_any(["ib", "nic"], "4 NICs/node"), names_any(["ib"], "fibre")
    (True, False)
    """
    pattern = "|".join(map(re.escape, words))
    return re.search(rf"(?<![a-z])(?:{pattern})s?(?![a-z])", text.lower()) is not None
