"""Which evaluation of a run is the best, and when too many have come since.

An evaluation is a dict: its step, and validation_loss or score where they could be measured. Everything here
follows from the list of them, so that a resumed run decides as one that was not interrupted.
"""

from gralora_diffusion.config import TrainConfig

MEASURES = {"loss": "validation_loss", "score": "score"}  # of --keep_best


def score_of(scores: dict, base: dict) -> float | None:
    """How good sample images are: (s - s_0) min(1, p / p_0)^2, with those of the base at step 0.

    s: subject similarity, p: prompt similarity. What was learned of the subject is reduced by what was lost
    of the prompt, squared, so that the score falls before a subject that is still improving hides the loss.
    The ratio does not depend on the scale of an encoder's cosines. A loss of subject similarity is the score
    itself. None where a number is missing or the base's prompt similarity is not positive.
    """
    parts = scores.get("subject"), scores.get("prompt"), base.get("subject"), base.get("prompt")
    if None in parts or parts[3] <= 0:
        return None
    subject, prompt, subject_of_base, prompt_of_base = parts
    learned = subject - subject_of_base
    kept = min(1.0, max(prompt, 0.0) / prompt_of_base)
    return learned * kept**2 if learned > 0 else learned


def best_of(history: list[dict], by: str) -> dict | None:
    """The evaluation of the lowest loss, or of the highest score; of equals the first.

    Step 0 is not one of them: an adapter that was not trained is no result. None where nothing was measured.
    """
    name = MEASURES[by]
    measured = [line for line in history if line["step"] > 0 and isinstance(line.get(name), int | float)]
    if not measured:
        return None
    return min(measured, key=lambda line: (line[name] if by == "loss" else -line[name], line["step"]))


def is_exhausted(history: list[dict], config: TrainConfig) -> bool:
    """Whether --patience evaluations in a row were no better than the best before them."""
    if config.patience is None:
        return False
    best = best_of(history, config.keep_best)
    since = best["step"] if best else 0
    return sum(line["step"] > since for line in history) >= config.patience


def best_text(history: list[dict], by: str) -> str:
    """One line: the best step, why, and what the first and last evaluations have."""
    best, name = best_of(history, by), MEASURES[by]
    if best is None:
        return "no evaluation could be measured: the last step is exported"
    measure = name.replace("_", " ")
    text = f"best: step {best['step']}, whose {measure} is {best[name]:.4f}"
    others = []
    for line in dict.fromkeys((0, len(history) - 1)):
        other = history[line]
        if other["step"] != best["step"] and other.get(name) is not None:
            others.append(f"step {other['step']} has {other[name]:.4f}")
    return f"{text}; {', '.join(others)}" if others else text
