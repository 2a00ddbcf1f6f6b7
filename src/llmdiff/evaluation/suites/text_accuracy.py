"""Compare the text read in a picture with the wanted text: matching words or characters, and the edit distance.

Source: Geng et al. 2025 (X-Omni, arXiv 2507.22058) and Chang et al. 2025 (OneIG-Bench, arXiv 2506.07977), whose scorers
keep the same characters.
"""

import re
from collections import Counter

import numpy as np

# Both scorers remove everything but Chinese characters, Latin letters, French accents, digits and spaces.
_LEFT_OUT = re.compile(r"[^\u4e00-\u9fa5a-zA-Z0-9\sàâäéèêëîïôöùûüçÀÂÄÉÈÊËÎÏÔÖÙÛÜÇ]")
_CHINESE = re.compile("[\u4e00-\u9fff]")


def has_chinese(text: str) -> bool:
    """Return whether a text has a Chinese character."""
    return _CHINESE.search(text) is not None


def normalised(text: str, *, spaces: bool) -> str:
    """Return a text without punctuation and other scripts, with single spaces between words or without spaces."""
    return (" " if spaces else "").join(_LEFT_OUT.sub("", text).split())


def matches(wanted: str, found: str, *, characters: bool) -> tuple[int, int]:
    """Return how many of the wanted words or characters were found, counting repetitions, and their number."""
    first, second = ((list(one) if characters else one.split()) for one in (wanted, found))
    return sum((Counter(first) & Counter(second)).values()), len(first)


def edit_distance(first: str, second: str) -> int:
    """Return the smallest number of characters inserted, deleted or replaced between two texts (Levenshtein)."""
    codes = np.array([ord(one) for one in second], dtype=np.int64)
    steps = np.arange(len(second) + 1)
    row = steps.copy()
    for number, one in enumerate(first, start=1):
        kept = np.minimum(row[1:] + 1, row[:-1] + (codes != ord(one)))
        row = np.concatenate([[number], kept])
        # Insertions: row[j] = min over i <= j of row[i] + j - i.
        row = np.minimum.accumulate(row - steps) + steps
    return int(row[-1])
