"""Scores as rows of text, and the remarks that qualify them."""

from gralora_diffusion.console import counted
from gralora_diffusion.evaluation.retrieval import precision_of_random_order

HEAD = ["images", "score", "n", "mean", "sd", "95 % interval", "encoder"]
NO_INTERVAL = "n = 1: no interval"
ONE_PROMPT = "one prompt: no interval"  # whose images are resampled together
FEW = 10  # values or prompts, below which the bootstrap's intervals are too narrow


def score_cell(value: float | None, signed: bool = False) -> str:
    if value is None:
        return ""
    value = round(value, 4) + 0.0  # never -0.0
    return f"{value:+.4f}" if signed else f"{value:.4f}"


def rows_of(entries: list[dict], signed: bool = False) -> list[list[str]]:
    """A row of HEAD for each score or difference."""
    rows = []
    for entry in entries:
        images = entry["run"]
        if "against" in entry:
            images = f"{images} - {entry['against']}"
        interval = NO_INTERVAL if entry["n"] == 1 else ONE_PROMPT
        if entry["low"] is not None:
            interval = f"{score_cell(entry['low'], signed)} .. {score_cell(entry['high'], signed)}"
        mean, sd = score_cell(entry["mean"], signed), score_cell(entry["sd"])
        rows.append([images, entry["label"], str(entry["n"]), mean, sd, interval, entry["encoder"]])
    return rows


def remarks(result: dict) -> list[str]:
    """What a mean does not show, one sentence each."""
    settings = result["settings"]
    found = []
    for run, how in settings["matched"].items():
        for metric in (metric for metric in how if how[metric] == "by order"):
            found.append(
                f"{run} ({metric}): the names of the images and their partners are not the same, and they "
                "were compared in order"
            )
    for entry in result["scores"]:
        found += remarks_on(entry)
    if any(1 < entry["units"] < FEW for entry in result["scores"]):
        found.append(
            f"intervals of fewer than {FEW} prompts, or of fewer than {FEW} values without prompts, are too "
            "narrow: the bootstrap resamples only these"
        )
    if size := settings["size_that_references_are_cut_to"]:
        found.append(
            "the reference images were first cropped and resized to the size of the generated ones, "
            f"{size[0]} x {size[1]}"
        )
    if any(entry["score"] == "prompt" for entry in result["scores"]):
        left_out = settings["words_left_out_of_prompts"]
        if left_out:
            words = "the word" if len(left_out) == 1 else "the words"
            found.append(f"prompts were scored without {words}: {', '.join(left_out)}")
        else:
            found.append("prompts were scored as they are, trigger word included")
    return found


def remarks_on(entry: dict) -> list[str]:
    """Of one score: copies, and prompts that were cut."""
    found = []
    run, encoder = entry["run"], entry["encoder"]
    if entry.get("copies"):
        limit = score_cell(entry["nearest_two_training_images"])
        found.append(
            f"{run}: copies: {entry['copies']} of {counted(entry['n'], 'image')}, nearer to a training image "
            f"than any two of those are to each other ({limit}): {encoder}"
        )
    if others := entry.get("lookalikes"):
        own = entry["subject"]
        found.append(
            f"{run}: identity rank among {counted(own, 'image')} of the subject and {others} of look-alikes; "
            f"{score_cell(precision_of_random_order(own, others))} on average in random order: {encoder}"
        )
    if cut := entry.get("prompts_longer_than_the_encoder_reads"):
        found.append(f"{run}: prompts longer than {encoder} reads were truncated: {cut}")
    return found
