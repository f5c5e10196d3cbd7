"""Compare: the table of scores, and above it what they say."""

import gradio as gr

from gralora_diffusion.ui.scores import verdict

NO_SCORES = (
    "**No scores yet.** Generate a grid, then press **Score the grid**: likeness to the training images, "
    "fidelity to the prompt (by clip or embedded), diversity and copies; with several prompts, each has an "
    "interval."
)
FEW_SCORES = (
    "**Few images:** intervals from fewer than 10 prompts or images are too narrow. More prompts and seeds "
    "help. For paired differences, see `gralora evaluate --help`."
)


def shown_scores(rows: list[list[str]], few: bool = False) -> tuple:
    """Updates of the table and of the hint; few: the intervals are from few images."""
    parts = [verdict(rows), FEW_SCORES if few else ""] if rows else [NO_SCORES]
    hint = "\n\n".join(filter(None, parts))
    return gr.update(value=rows or None, visible=bool(rows)), gr.update(value=hint, visible=bool(hint))
