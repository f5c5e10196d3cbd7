"""Compare: adapters or checkpoints against strengths, the same prompt and seeds in every cell, on one sheet and in one table."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gralora_diffusion.files import write_text
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui.drawing import MOST_STRENGTH, Drawing, Sampler, base_of
from gralora_diffusion.ui.image_sets import images_of
from gralora_diffusion.ui.run_queue import config_of
from gralora_diffusion.ui.workspace import BUNDLED, Workspace, shown

MOST_CELLS = 60


@dataclass(frozen=True)
class Cell:
    adapter: str
    strength: float
    seed: int
    path: str
    prompt: str = ""

    @property
    def group(self) -> str:
        return f"{self.adapter} at {self.strength:g}"


def parsed_strengths(text: str) -> list[float]:
    try:
        found = [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        found = []
    if not found or not all(0 <= value <= MOST_STRENGTH for value in found):
        raise ConfigError(
            f"the strengths are {shown(text)}; write numbers from 0 to {MOST_STRENGTH}, for instance 0, 0.5, 1"
        )
    return list(dict.fromkeys(found))


def grid(
    studio: Sampler, adapters: list[str], strengths: list[float], drawing: Drawing, seeds: int
) -> Iterator[tuple[Cell, object]]:
    """(cell, image) row by row: adapters down, strengths across, each with `seeds` seeds.  Strength 0 is the base, drawn once."""
    from dataclasses import replace

    if not adapters:
        raise ConfigError("choose at least one adapter to compare")
    if not 1 <= seeds <= 8 or len(adapters) * len(strengths) * seeds > MOST_CELLS:
        raise ConfigError(
            f"{len(adapters)} adapters x {len(strengths)} strengths x {seeds} seeds are too many: the most are {MOST_CELLS} images"
        )
    bases = {name: base_of(studio.home, name) for name in adapters}
    plain = {}
    for name in adapters:
        for strength in strengths:
            for n in range(seeds):
                wanted = replace(
                    drawing, seed=drawing.seed + n, adapters=((name, strength),) if strength else ()
                )
                key = (bases[name], wanted.seed)
                image = plain.get(key) if not strength else studio.draw(wanted, bases[name])
                if image is None:
                    image = plain[key] = studio.draw(wanted, bases[name])
                yield Cell(name, strength, wanted.seed, ""), image


def subject_of(home: Workspace, adapter: str) -> list[Path]:
    """The images that an adapter's run learnt."""
    name = adapter.partition("/")[0]
    folder = config_of(home.run(name)).instance_data_dir if name in home.run_names() else None
    if folder is None and name not in home.run_names():
        raise ConfigError(f"{adapter} was added as a file: nobody knows which images it learnt; choose a set")
    return set_images(home, BUNDLED if folder is None else Path(folder).name)


def set_images(home: Workspace, name: str) -> list[Path]:
    found = images_of(home.image_set(name))
    if not found:
        raise ConfigError(f"the set {name} holds no images to compare with")
    return found


def safe_cell(value) -> object:
    """A cell that a spreadsheet does not take for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def save_table(home: Workspace, head: list[str], rows: list[list]) -> list[str]:
    """scores.csv and scores.json, to download."""
    text = io.StringIO()
    csv.writer(text).writerows([head, *([safe_cell(value) for value in row] for row in rows)])
    as_csv, as_json = home.to_serve("scores.csv"), home.to_serve("scores.json")
    write_text(as_csv, text.getvalue())
    write_text(as_json, json.dumps([dict(zip(head, row, strict=True)) for row in rows], indent=2) + "\n")
    return [str(as_csv), str(as_json)]
