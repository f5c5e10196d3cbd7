"""What an evaluation found, for people and for programs: a table, JSON, CSV, and one HTML page that needs no network."""

import base64
import csv
import html
import io
import json
from pathlib import Path

from PIL import Image

from gralora_diffusion.evaluation.features import open_to_score
from gralora_diffusion.evaluation.image_sets import ImageSet, References
from gralora_diffusion.files import complete_or_absent

SHOWN = 200  # images of a run on the page
SIDE = 192
STYLE = """body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; } table { border-collapse: collapse; margin: 1em 0; }
td, th { padding: .2em .7em; text-align: right; border-bottom: 1px solid #ddd; } td.t, th.t { text-align: left; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; } figure { margin: 0; width: 200px; } figure img { max-width: 192px; image-rendering: auto; }
figcaption { font-size: 12px; overflow-wrap: anywhere; } .pair { display: flex; flex-wrap: wrap; gap: 4px; } .pair img { max-width: 94px; }"""


def number(value, signed: bool = False) -> str:
    return "" if value is None else f"{value:+.4f}" if signed else f"{value:.4f}"


def rows_of(entries: list[dict], signed: bool = False) -> list[list[str]]:
    """A row of text for each score or difference; the interval's cell is empty where one value has none."""
    rows = []
    for e in entries:
        interval = "" if e["low"] is None else f"{number(e['low'], signed)} .. {number(e['high'], signed)}"
        what = f"{e['run']} - {e['against']}" if "against" in e else e["run"]
        rows.append(
            [
                what,
                e["label"],
                str(e["n"]),
                number(e["mean"], signed),
                number(e["sd"]),
                interval,
                e["encoder"],
            ]
        )
    return rows


HEAD = ["images", "score", "n", "mean", "sd", "95 % interval", "encoder"]


def table(result: dict) -> str:
    """Scores, then differences, in columns; then what is worth saying: pairs in order, cut prompts, copies."""
    blocks = []
    for head, entries, signed in (
        (HEAD, result["scores"], False),
        (["paired difference", *HEAD[1:]], result["differences"], True),
    ):
        if entries:
            rows = [head, *rows_of(entries, signed)]
            widths = [max(len(row[c]) for row in rows) for c in range(len(head))]
            lines = [
                "  ".join(
                    f"{cell:{'>' if 2 <= c <= 4 else '<'}{widths[c]}}" for c, cell in enumerate(row)
                ).rstrip()
                for row in rows
            ]
            blocks.append("\n".join(lines))
    return "\n\n".join([*blocks, "\n".join(remarks(result))]).rstrip()


def remarks(result: dict) -> list[str]:
    """What a mean does not show, one sentence each."""
    by_order = [
        f"{run} ({score})"
        for run, how in result["settings"]["matched"].items()
        for score in how
        if how[score] == "by order"
    ]
    out = [
        f"{name}: the names of the images and their partners are not the same, and they were compared in order"
        for name in by_order
    ]
    for e in result["scores"]:
        if e.get("copies"):
            what = f"{e['copies']} of {e['n']} images are nearer to a training image than any two of those are to each other"
            out.append(f"{e['run']}: {what} ({number(e['nearest_two_training_images'])}): {e['encoder']}")
        if e.get("prompts_longer_than_the_encoder_reads"):
            out.append(
                f"{e['run']}: {e['prompts_longer_than_the_encoder_reads']} prompt(s) are longer than {e['encoder']} reads, and were cut"
            )
    if any(1 < e["n"] < 10 for e in result["scores"]):
        out.append(
            "intervals of fewer than 10 values are too narrow: the bootstrap knows only the values it has"
        )
    settings = result["settings"]
    if size := settings["size_that_references_are_cut_to"]:
        out.append(
            f"the images that these were compared with were first cut to their size, {size[0]} x {size[1]}"
        )
    left_out = settings["words_left_out_of_prompts"]
    if any(e["score"] == "prompt" for e in result["scores"]):
        out.append(
            f"prompts were scored without the words: {', '.join(left_out)}"
            if left_out
            else "prompts were scored as they are, rare word included"
        )
    return out


def csv_text(entries: list[dict]) -> str:
    out = io.StringIO()
    names = list(dict.fromkeys(name for e in entries for name in e))
    writer = csv.DictWriter(out, names)
    writer.writeheader()
    writer.writerows(entries)
    return out.getvalue()


def write_report(folder: Path, result: dict, runs: list[ImageSet], against: References) -> None:
    """scores.json, scores.csv, differences.csv, images.csv (which scores.csv explains) and index.html, each complete or absent."""
    files = {"scores.json": json.dumps(result, indent=1) + "\n", "index.html": page(result, runs, against)}
    facts, settings = {e["name"]: e for e in result["encoders"]}, result["settings"]
    for name, entries in (
        ("scores", result["scores"]),
        ("differences", result["differences"]),
        ("images", result["values"]),
    ):
        if entries:
            made_with = (
                facts[e["encoder"]] | settings | dict(matched=settings["matched"][e["run"]]) for e in entries
            )
            more = [{} if name == "images" else dict(made_with=json.dumps(m, default=str)) for m in made_with]
            files[f"{name}.csv"] = csv_text([e | m for e, m in zip(entries, more, strict=True)])
        else:
            (folder / f"{name}.csv").unlink(missing_ok=True)  # an earlier evaluation's
    for name, text in files.items():
        with complete_or_absent(folder / name) as part:
            part.write_text(text, encoding="utf-8")


def page(result: dict, runs: list[ImageSet], against: References) -> str:
    """The HTML page: tables, what the scores mean, and every image with its scores; all text escaped, all images inside."""
    parts = ["<!doctype html><meta charset='utf-8'><title>evaluation</title>"]
    parts.append(
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
    )
    parts.append(f"<style>{STYLE}</style><h1>Evaluation</h1>{html_table(HEAD, rows_of(result['scores']))}")
    if result["differences"]:
        parts.append(f"<h2>Paired differences</h2>{html_table(HEAD, rows_of(result['differences'], True))}")
    parts += [f"<p>{html.escape(text)}</p>" for text in remarks(result)]
    used = {e["score"] for e in result["scores"]}
    parts.append(
        "<ul>"
        + "".join(f"<li>{html.escape(f'{k}: {v}')}</li>" for k, v in result["meaning"].items() if k in used)
        + "</ul>"
    )
    if against.references:
        images = "".join(img(path, against.size) for path in against.references[:SHOWN])
        parts.append(f"<h2>The subject's images</h2><div class='cards'>{images}</div>")
    for run in runs:
        shown = "" if len(run.paths) <= SHOWN else f" ({SHOWN} of {len(run.paths)} are shown)"
        cards = "".join(card(i, run, against, result["values"]) for i in range(min(SHOWN, len(run.paths))))
        parts.append(f"<h2>{html.escape(run.name)}{shown}</h2><div class='cards'>{cards}</div>")
    parts.append(
        f"<h2>Made with</h2><pre>{html.escape(json.dumps(dict(encoders=result['encoders'], **result['settings']), indent=1))}</pre>"
    )
    return "\n".join(parts) + "\n"


def card(index: int, run: ImageSet, against: References, values: list[dict]) -> str:
    path = run.paths[index]
    mine = [v for v in values if v["run"] == run.name and v["of"] == path.name and v["score"] != "diversity"]
    pair = img(path)
    for score, others, size in (("paired", against.originals, against.size), ("drift", against.base, None)):
        if others:
            beside = next(v["beside"] for v in mine if v["score"] == score)
            pair += img(next(p for p in others if p.name == beside), size)
    lines = [
        f"{v['label']} {number(v['value'])}"
        + (f" ({v['beside']})" if v["beside"] else "")
        + f" · {v['encoder']}"
        for v in mine
    ]
    caption = "<br>".join(
        html.escape(text) for text in [path.name, *([run.prompts[index]] if run.prompts else []), *lines]
    )
    return f"<figure><div class='pair'>{pair}</div><figcaption>{caption}</figcaption></figure>"


def img(path: Path, size: tuple[int, int] | None = None) -> str:
    """The image, at most SIDE pixels, as a part of the page."""
    image = open_to_score(path, size)
    if max(image.size) > SIDE:
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "PNG")
    data = base64.b64encode(out.getvalue()).decode()
    return f"<img alt='{html.escape(path.name, quote=True)}' src='data:image/png;base64,{data}'>"


def html_table(head: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str], tag: str) -> str:
        return (
            "<tr>"
            + "".join(
                f"<{tag}{' class=t' if c not in (2, 3, 4) else ''}>{html.escape(x)}</{tag}>"
                for c, x in enumerate(cells)
            )
            + "</tr>"
        )

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"
