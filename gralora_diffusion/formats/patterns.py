"""The patterns of PEFT's rank_pattern and alpha_pattern in files of others, matched in bounded time."""

import functools
import re

from gralora_diffusion.options import ConfigError

PIECE = r"(?:[\w.^$|()-]|\\[.d_-]|\[[\w-]+\])[*+]?"
LITERAL = re.compile(r"[\w.-]+")
MOST_REPEATS = 3  # of * and +: the time is at most the length of a path to this power
LONGEST = 200_000  # characters; a list of all layers of SDXL has 40,000


def pattern_value(patterns, path: str, default):
    """PEFT's rule: the first pattern that is the path, or the end of it after a dot, counts.

    Raises ConfigError as check_bounded() does.
    """
    if not isinstance(patterns, dict):
        return default
    for pattern, value in patterns.items():
        if matches(pattern, path):
            return value
    return default


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern is this path or the end of it; names are compared as text, which is much faster."""
    if LITERAL.fullmatch(pattern):
        return path == pattern or path.endswith(f".{pattern}")
    return compiled(pattern).match(path) is not None


@functools.lru_cache(maxsize=4096)
def compiled(pattern: str) -> re.Pattern:
    check_bounded(pattern)
    return re.compile(rf"(.*\.)?({pattern})$")


def check_bounded(pattern: str) -> None:
    """Raises ConfigError for a regular expression that could take forever, such as one of repeated groups."""
    plain = pattern.replace("(?:", "(")
    simple = len(plain) <= LONGEST and re.fullmatch(rf"(?:{PIECE})*", plain) is not None
    repeats = plain.count("*") + plain.count("+")
    if not simple or repeats > MOST_REPEATS or re.search(r"\)[*+]", plain):
        reason = f"only names, alternatives in brackets and up to {MOST_REPEATS} of * and + are read"
        raise ConfigError(f"rank_pattern or alpha_pattern {pattern[:80]!r} is not simple enough: {reason}")
    try:
        re.compile(pattern)
    except re.error as error:
        problem = f"{pattern[:80]!r} is not a regular expression: {error}"
        raise ConfigError(f"rank_pattern or alpha_pattern {problem}") from None
