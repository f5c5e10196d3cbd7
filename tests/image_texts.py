"""Readers of the texts in images, after the formats of AUTOMATIC1111's web UI and of ComfyUI's import."""

import json
import re


def read_as_a1111(text: str) -> tuple[str, str, dict[str, str]]:
    """(prompt, negative prompt, {name: value}): lines of prompt, "Negative prompt:", a last line of pairs.

    A value in quotation marks is JSON; any other ends at a comma.
    """
    *lines, last = text.strip().split("\n")
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
    assert len(pairs) >= 3
    prompts = [[], []]
    part = 0
    for line in map(str.strip, lines):
        if line.startswith("Negative prompt:"):
            part, line = 1, line.removeprefix("Negative prompt:").strip()
        prompts[part].append(line)
    values = {}
    for name, value in pairs:
        values[name] = json.loads(value) if value.startswith('"') else value.strip()
    return "\n".join(prompts[0]), "\n".join(prompts[1]), values


def read_as_comfyui(text: str) -> tuple[str, str, dict[str, str]]:
    """The same by the rule of ComfyUI's import, which finds the parts from the end."""
    steps = text.rindex("\nSteps:")
    negative = text.rindex("\nNegative prompt:", 0, steps)
    options = {}
    for found in re.finditer(r'\s*([^:]+:\s*([^"{].*?|".*?"|\{.*?\}))\s*(,|$)', text[steps + 1 :]):
        name, _, value = found[1].partition(":")
        options[name.strip().lower()] = value.strip()
    return text[:negative].strip(), text[negative + 17 : steps].strip(), options
