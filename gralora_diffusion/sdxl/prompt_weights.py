"""Weights in prompts, as ComfyUI reads them: (words), (words:1.2), and [words] as A1111 does.

Brackets raise the weight of what they hold by a factor of 1.1, square ones lower it by the same. A number is
the weight itself, whatever stands around its brackets. A bracket without its other half is text, and so is
one after a backslash.
"""

import re
from typing import NamedTuple

from gralora_diffusion.options import ConfigError

STEP = 1.1
MOST = 10.0  # weights are from -MOST to MOST
NUMBER = re.compile(r"[ ]{0,4}[+-]?([0-9]{1,6}(\.[0-9]{0,8})?|\.[0-9]{1,8})[ ]{0,4}")
LONGEST = 24  # characters of a number
CLOSES = {")": "(", "]": "["}
ESCAPED = re.compile(r"\\([()\[\]])")
BRACKET = re.compile(r"([()\[\]])")


class Pair(NamedTuple):
    """A bracket and its other half in a list of characters."""

    end: int  # of what it holds, a number excluded
    close: int
    weight: float | None  # a number, if there is one


def parse_weights(text: str) -> list[tuple[str, float]]:
    """(part of the text, its weight), in order, without the brackets that set weights; in linear time.

    Raises ConfigError for weights out of bounds.
    """
    characters, escaped = unescaped(text)
    pairs = pairs_of(characters, escaped)
    parts, current = [], []
    weights, closing = [1.0], {}  # closing: {position: where the text goes on}
    position = 0
    while position < len(characters):
        if position in pairs or position in closing:
            parts.append(("".join(current), weights[-1]))
            current = []
        if position in closing:
            weights.pop()
            position = closing[position]
        elif position in pairs:
            pair = pairs[position]
            factor = STEP if characters[position] == "(" else 1 / STEP
            weights.append(pair.weight if pair.weight is not None else weights[-1] * factor)
            closing[pair.end] = pair.close + 1
            position += 1
        else:
            current.append(characters[position])
            position += 1
    parts.append(("".join(current), weights[-1]))
    found = [(words, weight) for words, weight in parts if words]
    for words, weight in found:
        if words.strip() and not abs(weight) <= MOST:
            problem = f"the prompt gives {words.strip()[:40]!r} the weight {weight:g}"
            rule = f"weights are from -{MOST:g} to {MOST:g}, and \\( and \\) are plain brackets"
            raise ConfigError(f"{problem}; {rule}")
    return found


def unescaped(text: str) -> tuple[list[str], set[int]]:
    """(characters without backslashes before brackets, the positions of those brackets)"""
    characters, escaped, start = [], set(), 0
    for match in ESCAPED.finditer(text):
        characters += text[start : match.start()]
        escaped.add(len(characters))
        characters.append(match[1])
        start = match.end()
    characters += text[start:]
    return characters, escaped


def pairs_of(characters: list[str], escaped: set[int]) -> dict[int, Pair]:
    """{position of an opening bracket: its Pair}"""
    found, opened = {}, []
    open_now = {"(": 0, "[": 0}
    for position, character in enumerate(characters):
        if position in escaped:
            continue
        if character in open_now:
            opened.append(position)
            open_now[character] += 1
        elif character in CLOSES and open_now[CLOSES[character]]:
            while characters[opened[-1]] != CLOSES[character]:  # those inside have no other half
                open_now[characters[opened.pop()]] -= 1
            start = opened.pop()
            open_now[CLOSES[character]] -= 1
            end, weight = number_before(characters, start, position) if character == ")" else (position, None)
            found[start] = Pair(end, position, weight)
    return found


def number_before(characters: list[str], start: int, close: int) -> tuple[int, float | None]:
    """(end of the words, weight) of what stands between two brackets: the weight after the last colon."""
    tail = "".join(characters[max(start + 1, close - LONGEST) : close])
    _, colon, number = tail.rpartition(":")
    end = close - len(number) - 1
    if not colon or end <= start + 1 or not NUMBER.fullmatch(number):
        return close, None
    return end, float(number)


def without_weights(text: str) -> str:
    """The text with a backslash before each bracket, so that parse_weights() takes it for plain text."""
    return BRACKET.sub(r"\\\1", text)


def split_at_commas(text: str) -> list[str]:
    """The parts between commas, but for commas within brackets that set weights."""
    escaped = {match.start(1) for match in ESCAPED.finditer(text)}
    pairs = pairs_of(list(text), escaped)
    parts, begin, position = [], 0, 0
    while position < len(text):
        if position in pairs:
            position = pairs[position].close
        elif text[position] == ",":
            parts.append(text[begin:position])
            begin = position + 1
        position += 1
    return [*parts, text[begin:]]
