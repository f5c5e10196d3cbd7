"""Prompts as chunks of tokens: text encoders read 75 tokens at once, longer prompts are read in parts.

As ComfyUI does: each chunk has a start and an end of its own, a word is not divided between two chunks unless
it is long, and the embeddings of the chunks are concatenated. The pooled embedding is that of the
first chunk.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.prompt_weights import parse_weights

PENULTIMATE = 2  # clip_skip of SDXL: the output of the last layer but one
TOKENS = 75  # of a chunk of SDXL's text encoders, without start and end
MOST_CHUNKS = 10  # of a prompt
LONG_WORD = 8  # tokens from which a word is divided
MOST_CHARACTERS = 65_536


class PromptRules(NamedTuple):
    """How prompts are read.

    weighted: whether brackets set weights. clip_skip: whose layer's output is used, 1 for the last.
    chunks: how many are read; what is longer is cut, or raises ConfigError.
    """

    weighted: bool = False
    clip_skip: int = PENULTIMATE
    chunks: int = 3
    cut: bool = True

    @classmethod
    def of(cls, config) -> "PromptRules":
        """Those of the captions of a TrainConfig."""
        return cls(config.weighted_captions, config.clip_skip, config.max_token_length // TOKENS)


class Chunks(NamedTuple):
    """A prompt for one text encoder: a row of tokens and one of weights for each chunk, all of one length."""

    tokens: list[list[int]]
    weights: list[list[float]]
    length: int  # of a single chunk's tokens, padding excluded

    def without_padding(self) -> list[int]:
        """The tokens of a single chunk."""
        return self.tokens[0][: self.length]


class Reading(NamedTuple):
    """A prompt as the text encoders read it."""

    of_encoders: tuple[Chunks, ...]
    lost: int  # tokens that are cut
    plain: bool  # whether it is one chunk without weights, which diffusers' own function embeds too

    @property
    def chunks(self) -> int:
        return len(self.of_encoders[0].tokens)


def read_prompt(pipeline, text: str, rules: PromptRules) -> Reading:
    """Raises ConfigError for a prompt that is too long and not cut, and for weights out of bounds."""
    tokenizers, most = (pipeline.tokenizer, pipeline.tokenizer_2), rules.chunks
    if len(text) > MOST_CHARACTERS:
        problem = f"the prompt has {len(text):,} characters; the limit is {MOST_CHARACTERS:,}"
        raise ConfigError(problem)
    parts = parse_weights(text) if rules.weighted else [(text, 1.0)]
    words = [words_of(tokenizer, parts) for tokenizer in tokenizers]
    number = max(sum(len(tokens) for tokens, _ in own) for own in words)
    has_weights = any(weight != 1 for _, weight in parts)
    room = tokenizers[0].model_max_length - 2
    if len(parts) < 2 and not has_weights and (number <= room or (most == 1 and rules.cut)):
        plain = parts[0][0] if parts else ""
        rows = tuple(whole(tokenizer, plain) for tokenizer in tokenizers)
        return Reading(rows, max(0, number - room), plain == text)
    filled = [fill(tokenizer, own) for tokenizer, own in zip(tokenizers, words, strict=True)]
    longest = max(len(chunks) for chunks in filled)
    if longest > most and not rules.cut:
        problem = f"the prompt has {number:,} tokens; the limit is {most * room:,}"
        raise ConfigError(f"{problem}: shorten {text[:40]!r}...")
    lost = max(sum(map(len, chunks[most:])) for chunks in filled)
    kept = min(longest, most)
    of_encoders = [
        with_ends(tokenizer, chunks[:kept], kept)
        for tokenizer, chunks in zip(tokenizers, filled, strict=True)
    ]
    return Reading(tuple(of_encoders), lost, False)


def words_of(tokenizer, parts: list[tuple[str, float]]) -> list[tuple[list[int], float]]:
    """(tokens, weight) of each word."""
    words, weights = [], []
    for text, weight in parts:
        own = text.split()
        words += own
        weights += [weight] * len(own)
    if not words:
        return []
    tokens = tokenizer(words, add_special_tokens=False, truncation=False).input_ids
    return list(zip(tokens, weights, strict=True))


def whole(tokenizer, text: str) -> Chunks:
    """The one chunk of a text, cut where it is longer, as diffusers makes it."""
    length = tokenizer.model_max_length
    found = tokenizer(text, padding="max_length", truncation=True, max_length=length)
    return Chunks([found.input_ids], [[1.0] * length], sum(found.attention_mask))


def fill(tokenizer, words: list[tuple[list[int], float]]) -> list[list[tuple[int, float]]]:
    """Chunks of (token, weight) without start and end; at least one."""
    room = tokenizer.model_max_length - 2
    chunks = [[]]
    for tokens, weight in words:
        left = [(token, weight) for token in tokens]
        while len(left) > room - len(chunks[-1]):
            if len(left) >= LONG_WORD:
                free = room - len(chunks[-1])
                chunks[-1] += left[:free]
                left = left[free:]
            chunks.append([])
        chunks[-1] += left
    return chunks


def with_ends(tokenizer, chunks: list[list[tuple[int, float]]], number: int) -> Chunks:
    """The chunks with start, end and padding, and empty ones up to `number`."""
    tokens, weights = [], []
    for chunk in [*chunks, *([[]] * (number - len(chunks)))]:
        padding = tokenizer.model_max_length - 2 - len(chunk)
        own = [token for token, _ in chunk]
        ends = [tokenizer.eos_token_id, *[tokenizer.pad_token_id] * padding]
        tokens.append([tokenizer.bos_token_id, *own, *ends])
        weights.append([1.0, *[weight for _, weight in chunk], *[1.0] * len(ends)])
    return Chunks(tokens, weights, tokenizer.model_max_length)


def empty_chunk(tokenizer) -> list[int]:
    """The tokens of an empty prompt."""
    return with_ends(tokenizer, [], 1).tokens[0]


def common_chunks(numbers: Iterable[int]) -> int:
    """How many chunks all prompts can have by repeating their own: the least common multiple.

    Attention to the same tokens several times gives the same as to them once, so that a prompt's effect does
    not depend on the others, but for rounding.
    """
    return math.lcm(1, *set(numbers))
