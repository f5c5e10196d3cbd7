"""index.html of an evaluation: plots, tables, meanings, and every image with its scores; needs no network."""

import base64
import io
import json
from pathlib import Path

from PIL import Image

from gralora_diffusion.evaluation.features import open_to_score
from gralora_diffusion.evaluation.image_sets import ImageSet, References
from gralora_diffusion.evaluation.interval_plots import interval_plots
from gralora_diffusion.evaluation.metric import OF_PROMPTS
from gralora_diffusion.evaluation.score_rows import HEAD, remarks, rows_of, score_cell
from gralora_diffusion.evaluation.short_names import short_names
from gralora_diffusion.files import render

MOST_IMAGES = 200  # of a run on the page
SIDE = 320  # pixels


def evaluation_page(result: dict, runs: list[ImageSet], against: References) -> str:
    used = {entry["score"] for entry in result["scores"]}
    made_with = dict(encoders=result["encoders"], **result["settings"])
    short = short_names([encoder["name"] for encoder in result["encoders"]])
    scores, differences = (named_shortly(result[name], short) for name in ("scores", "differences"))
    return render(
        "evaluation/templates/evaluation.html",
        title="Evaluation",
        lead=lead_of(runs, short),
        head=HEAD,
        text_columns=("images", "score", "95 % interval", "encoder"),
        plots=interval_plots(result["scores"], short),
        scores=[as_cells(row) for row in rows_of(scores)],
        difference_plots=interval_plots(result["differences"], short, signed=True),
        differences=[as_cells(row) for row in rows_of(differences, signed=True)],
        remarks=remarks(result | dict(scores=scores)),
        meanings={name: meaning for name, meaning in result["meaning"].items() if name in used},
        references=[inline_image(path, against.size) for path in against.references[:MOST_IMAGES]],
        runs=[cards_of(run, against, named_shortly(result["values"], short)) for run in runs],
        made_with=json.dumps(made_with, indent=1),
    )


def lead_of(runs: list[ImageSet], short: dict[str, str]) -> str:
    """Which images, and how many of each."""
    counts = [f"{run.name}: {len(run.paths)} image{'' if len(run.paths) == 1 else 's'}" for run in runs]
    return f"{' · '.join(counts)} · scored by {', '.join(short.values())}"


def named_shortly(entries: list[dict], short: dict[str, str]) -> list[dict]:
    """The entries with their encoders' short names."""
    return [entry | dict(encoder=short[entry["encoder"]]) for entry in entries]


def as_cells(row: list[str]) -> dict[str, str]:
    return dict(zip(HEAD, row, strict=True))


def cards_of(run: ImageSet, against: References, values: list[dict]) -> dict:
    """The run's title, and a card for each image."""
    number_of = len(run.paths)
    shown = min(MOST_IMAGES, number_of)
    title = run.name if shown == number_of else f"{run.name} ({shown} of {number_of} images)"
    by_image = {path.name: [] for path in run.paths}
    for value in values:
        if value["run"] == run.name and value["score"] not in OF_PROMPTS:
            by_image[value["of"]].append(value)
    cards = []
    for i, path in enumerate(run.paths[:shown]):
        mine = by_image[path.name]
        images = [inline_image(path), *partners(mine, against)]
        prompt = run.prompts[i] if run.prompts else ""
        cards.append(dict(images=images, name=path.name, prompt=prompt, lines=list(map(caption_line, mine))))
    return dict(title=title, cards=cards)


def caption_line(value: dict) -> str:
    beside = f" ({value['beside']})" if value["beside"] else ""
    return f"{value['label']} {score_cell(value['value'])}{beside} · {value['encoder']}"


def partners(values: list[dict], against: References) -> list[dict]:
    """The images that an image was compared with one by one."""
    found = []
    for metric, others, size in (("paired", against.originals, against.size), ("drift", against.base, None)):
        if others:
            name = next(value["beside"] for value in values if value["score"] == metric)
            found.append(inline_image(next(path for path in others if path.name == name), size))
    return found


def inline_image(path: Path, size: tuple[int, int] | None = None) -> dict[str, str]:
    """The image in base64, at most SIDE pixels: a small one as a PNG, which is exact, else as a JPEG."""
    image = open_to_score(path, size)
    kind = "png"
    if max(image.size) > SIDE:
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        kind = "jpeg"
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, kind, quality=90)
    return dict(name=path.name, kind=kind, data=base64.b64encode(buffer.getvalue()).decode())
