"""The result of an evaluation as text, JSON and CSV; evaluation/page.py writes it as HTML."""

import csv
import io
import json
from pathlib import Path

from gralora_diffusion.evaluation.image_sets import ImageSet, References
from gralora_diffusion.evaluation.page import evaluation_page
from gralora_diffusion.evaluation.score_rows import HEAD, remarks, rows_of, score_cell
from gralora_diffusion.files import write_text

NUMBERS = range(2, 5)  # columns of HEAD


def score_tables(result: dict) -> str:
    """Scores, then differences, in columns; then remarks on them."""
    blocks = []
    if result["scores"]:
        blocks.append(aligned_columns([HEAD, *rows_of(result["scores"])]))
    if result["differences"]:
        head = ["paired difference", *HEAD[1:]]
        blocks.append(aligned_columns([head, *rows_of(result["differences"], signed=True)]))
    blocks.append("\n".join(remarks(result)))
    return "\n\n".join(blocks).rstrip()


def retrieval_table(rows: list[dict]) -> str:
    """What subject_retrieval() found with each encoder, in columns; then what they mean."""
    counts = rows[0]
    cells = [["encoder", "nearest image", "95 % interval", "triples", "within", "between"]]
    for row in rows:
        low, high = row["nearest_is_the_same_subject_interval"]
        numbers = [row["triples_in_order"], row["within"], row["between"]]
        nearest = score_cell(row["nearest_is_the_same_subject"])
        interval = f"{score_cell(low)} .. {score_cell(high)}"
        cells.append([row["encoder"], nearest, interval, *map(score_cell, numbers)])
    return "\n\n".join(
        [
            f"{counts['images']} images of {counts['subjects']} subjects",
            aligned_columns(cells, numbers=range(1, len(cells[0]))),
            "nearest image: share of images whose nearest other image shows the same subject\n"
            "triples: share of triples (image, same subject, other subject) in the right order\n"
            "within, between: mean cosine similarity of images of the same subject, of different subjects",
        ]
    )


def aligned_columns(rows: list[list[str]], numbers: range = NUMBERS) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
            cells.append(cell.rjust(width) if place in numbers else cell.ljust(width))
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def write_evaluation(folder: Path, result: dict, runs: list[ImageSet], against: References) -> None:
    """scores.json, scores.csv, differences.csv, images.csv and index.html, each complete or absent.

    scores.csv and differences.csv carry the encoder's facts and the settings of each line.
    """
    write_text(folder / "scores.json", json.dumps(result, indent=1) + "\n")
    write_text(folder / "index.html", evaluation_page(result, runs, against))
    tables = dict(
        scores=[entry | made_with(entry, result) for entry in result["scores"]],
        differences=[entry | made_with(entry, result) for entry in result["differences"]],
        images=result["values"],
    )
    for name, entries in tables.items():
        path = folder / f"{name}.csv"
        if entries:
            write_text(path, csv_text(entries))
        else:
            path.unlink(missing_ok=True)  # an earlier evaluation's


def made_with(entry: dict, result: dict) -> dict:
    settings = result["settings"]
    (facts,) = [encoder for encoder in result["encoders"] if encoder["name"] == entry["encoder"]]
    matched = dict(matched=settings["matched"][entry["run"]])
    return dict(made_with=json.dumps(facts | settings | matched, default=str))


def csv_text(entries: list[dict]) -> str:
    names = {}
    for entry in entries:
        names |= dict.fromkeys(entry)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(names))
    writer.writeheader()
    writer.writerows(entries)
    return out.getvalue()
