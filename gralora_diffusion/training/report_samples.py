"""The sample images of a run in its report: a row for each prompt and seed, from the base to the end."""

from pathlib import Path

from gralora_diffusion.data.images import open_image
from gralora_diffusion.formats.preview import jpeg_of_image

SIDE = 512  # pixels of the longer side of an image
MOST_STEPS = 8  # images of a row, the first and the last among them
MOST_ROWS = 16


def prompts_of_samples(config: dict) -> list[str]:
    """The prompt of each sample image; config: config.json, whose prompts the run has filled in."""
    prompts = config.get("validation_prompt")
    count = config.get("num_validation_images")
    if not isinstance(prompts, str) or type(count) is not int:
        return []
    return [prompt.strip() for prompt in prompts.split("|") for _ in range(count)]


def sample_rows(
    run: Path, prompts: list[str], best: int | None, first: str = "base model"
) -> tuple[list[list[dict]], str]:
    """(rows of images, what was left out in words); first: what the images of step 0 are of.

    An image: its path in the run folder, a label, its prompt, a JPEG in base64, and whether it is of the best
    step.
    """
    by_step = files_by_step(run)
    steps = evenly(list(by_step), MOST_STEPS)
    count = max((len(files) for files in by_step.values()), default=0)
    rows = []
    for number in range(min(count, MOST_ROWS)):
        row = []
        for step in steps:
            if number >= len(by_step[step]):
                continue
            path = by_step[step][number]
            prompt = prompts[number] if number < len(prompts) else ""
            place = f"samples/{path.parent.name}/{path.name}"
            label = f"step {step}" if step else first
            data = jpeg_of_image(open_image(path), SIDE)
            row.append(dict(path=place, label=label, prompt=prompt, data=data))
            row[-1]["best"] = step == best
        rows.append(row)
    left_out = []
    if len(steps) < len(by_step):
        left_out.append(f"{len(steps)} of {len(by_step)} steps")
    if len(rows) < count:
        left_out.append(f"{len(rows)} of {count} images of each step")
    return rows, f"{' and '.join(left_out)} are shown" if left_out else ""


def files_by_step(run: Path) -> dict[int, list[Path]]:
    """{step: its images}, the base's at step 0 first."""
    found = {}
    for folder in (run / "samples").glob("step-*"):
        number = folder.name.removeprefix("step-")
        files = sorted(folder.glob("*.png"))
        if files and number.isascii() and number.isdigit():
            found[int(number)] = files
    return dict(sorted(found.items()))


def evenly(values: list, most: int) -> list:
    """At most so many of the values, evenly spaced, with the first and the last."""
    if len(values) <= most:
        return values
    return [values[i * (len(values) - 1) // (most - 1)] for i in range(most)]
