"""Compare: prompts and adapters against strengths, with the same seeds in every cell."""

import csv
import io
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from gralora_diffusion.console import counted
from gralora_diffusion.files import write_text
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui.adapter_files import AS_TRAINED, base_of
from gralora_diffusion.ui.image_series import followed
from gralora_diffusion.ui.image_sets import images_of
from gralora_diffusion.ui.run_files import config_of
from gralora_diffusion.ui.sampler import MAX_STRENGTH, ImageRequest, Sampler, Step
from gralora_diffusion.ui.scores import Group
from gralora_diffusion.ui.workspace import BUNDLED, Workspace, quoted

MAX_CELLS = 96
MAX_SEEDS = 8
AGAIN = "generate the grid again"  # what to do where its images were deleted because of their age


@dataclass(frozen=True)
class Cell:
    """An image of the grid, and the settings that it was generated with; path: of the served file."""

    adapter: str
    strength: float
    seed: int
    prompt: str
    path: str = ""

    @property
    def group(self) -> str:
        return f"{self.adapter} at {self.strength:g}"


def parse_strengths(text: str) -> list[float]:
    try:
        found = [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        found = []
    if not found or not all(0 <= value <= MAX_STRENGTH for value in found):
        rule = f"write numbers from 0 to {MAX_STRENGTH}, for instance 0, 0.5, 1"
        raise ConfigError(f"the strengths are {quoted(text)}; {rule}")
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Axes:
    """What a grid compares: a row for each prompt and adapter, columns of strengths with their seeds."""

    prompts: list[str]
    adapters: list[str]
    strengths: list[float]
    seeds: int

    def cells(self, first_seed: int) -> list[Cell]:
        """Row by row, without images.  Raises ConfigError for no adapters, and for too many cells."""
        if not self.adapters:
            raise ConfigError("choose at least one adapter to compare")
        counts = dict(prompt=len(self.prompts), adapter=len(self.adapters))
        counts |= dict(strength=len(self.strengths), seed=self.seeds)
        if not 1 <= self.seeds <= MAX_SEEDS or math.prod(counts.values()) > MAX_CELLS:
            size = " x ".join(counted(number, what) for what, number in counts.items())
            raise ConfigError(f"{size} are too many: a grid has at most {MAX_CELLS} images")
        seeds = range(first_seed, first_seed + self.seeds)
        rows = itertools.product(self.prompts, self.adapters, self.strengths, seeds)
        return [Cell(adapter, strength, seed, prompt) for prompt, adapter, strength, seed in rows]


def grid(
    sampler: Sampler, cells: list[Cell], first: ImageRequest
) -> Iterator[Step | tuple[Cell, Image.Image]]:
    """The cells, each with its image once it is there, and the steps before it.

    Strength 0 is the base, which is generated once for each prompt and seed.
    """
    bases = {cell.adapter: base_of(sampler.workspace, cell.adapter) for cell in cells}
    base_images = {}
    for cell in cells:
        used = ((cell.adapter, cell.strength),) if cell.strength else ()
        request = replace(first, prompt=cell.prompt, seed=cell.seed, adapters=used)
        key = (bases[cell.adapter], cell.prompt, cell.seed)
        image = None if cell.strength else base_images.get(key)
        if image is None:
            image = yield from followed(sampler, request, bases[cell.adapter], 0)
        if not cell.strength:
            base_images[key] = image
        yield cell, image


def references_of(workspace: Workspace, adapter: str, choice: str | None) -> list[Path]:
    """The real images that an adapter is scored against: those of a set, or those that it was trained on."""
    if choice not in (None, AS_TRAINED):
        return set_images(workspace, choice)
    name = adapter.partition("/")[0]
    if name.endswith(".safetensors"):
        problem = "was added as a file: its training images are not known; choose a dataset"
        raise ConfigError(f"{adapter} {problem}")
    if name not in workspace.run_names():
        raise ConfigError(f"there is no run named {name} any more: {AGAIN}, or choose a dataset")
    folder = config_of(workspace.run(name)).instance_data_dir
    return set_images(workspace, BUNDLED if folder is None else Path(folder).name)


def set_images(workspace: Workspace, name: str) -> list[Path]:
    found = images_of(workspace.image_set(name))
    if not found:
        raise ConfigError(f"the dataset {name} holds no images to compare with")
    return found


def save_table(workspace: Workspace, head: list[str], rows: list[list]) -> list[str]:
    """scores.csv and scores.json, to download."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(head)
    for row in rows:
        writer.writerow([without_formula(value) for value in row])
    csv_path = workspace.new_served_path("scores.csv")
    write_text(csv_path, text.getvalue())
    json_path = workspace.new_served_path("scores.json")
    records = [dict(zip(head, row, strict=True)) for row in rows]
    write_text(json_path, json.dumps(records, indent=2) + "\n")
    return [str(csv_path), str(json_path)]


def without_formula(value) -> object:
    """A value that a spreadsheet does not take for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def captioned(cells: list[Cell]) -> list[tuple[str, str]]:
    """Cells as a gallery takes them."""
    several = len({cell.prompt for cell in cells}) > 1
    found = []
    for cell in cells:
        prompt = f" · {cell.prompt[:60]}" if several else ""
        found.append((cell.path, f"{cell.group} · seed {cell.seed}{prompt}"))
    return found


def row_of(cell: Cell) -> tuple:
    """What the cells of a row at one seed have in common."""
    return cell.adapter, cell.prompt, cell.seed


def groups_of(cells: list[Cell]) -> list[Group]:
    """Cells of one adapter by strength, to be scored together."""
    by_name: dict[str, list[Cell]] = {}
    for cell in cells:
        by_name.setdefault(cell.group, []).append(cell)
    groups = []
    for name, found in by_name.items():
        groups.append(Group(name, [Path(cell.path) for cell in found], [cell.prompt for cell in found]))
    return groups
