"""The results of gpu.sh: one JSON and a page in Markdown, both written again after every measurement."""

import json
import os
import time
from pathlib import Path

TITLES = {
    "facts": "Machine",
    "steps": "Training steps",
    "presets": "Estimate and run of each preset",
    "precisions": "Precisions: steps on one fixed batch",
    "images": "Images",
    "resume": "Stopped and resumed",
}


class Results:
    """FOLDER/results.json: {"options": {...}, "sections": {name: section}}, and results.md of the same.

    A section is {"state", "sentence", "began", "seconds", "rows"}: state is running, done, failed, stopped or
    skipped, sentence says why it is not done, and rows are {column: number or text}.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.file = folder / "results.json"
        self.found = dict(options={}, sections={})
        if self.file.is_file():
            self.found = json.loads(self.file.read_text())

    def start(self, options: dict) -> None:
        """Empty results of a run with these options."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.found = dict(options=options, sections={})
        self.write()

    def begin(self, section: str, until: float) -> None:
        """until: the time, in seconds since 1970, at which the section is to end."""
        values = dict(state="running", sentence="", began=time.time(), until=until, seconds=0.0, rows=[])
        self.found["sections"][section] = values
        self.write()

    def add(self, section: str, row: dict) -> None:
        self.found["sections"][section]["rows"].append(row)
        self.write()

    def end(self, section: str, state: str, sentence: str = "") -> None:
        values = self.found["sections"].setdefault(section, dict(rows=[]))
        seconds = time.time() - values["began"] if "began" in values else 0.0
        values.update(state=state, sentence=sentence, seconds=round(seconds, 1))
        self.write()

    def state(self, section: str) -> str | None:
        """None for a section that has not begun."""
        return self.found["sections"].get(section, {}).get("state")

    def write(self) -> None:
        replace(self.file, json.dumps(self.found, indent=1) + "\n")
        replace(self.folder / "results.md", page(self.found))


def replace(path: Path, text: str) -> None:
    """The whole text, or what was there before."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    os.replace(part, path)


def page(found: dict) -> str:
    lines = ["# GPU benchmark", ""]
    lines += [f"{name}: {value}  " for name, value in found["options"].items()]
    for name, section in found["sections"].items():
        lines += ["", f"## {TITLES[name]}", ""]
        about = f"{section['state']} after {section['seconds']} s"
        lines.append(f"{about}: {section['sentence']}" if section["sentence"] else about)
        if section["rows"]:
            lines += ["", *table(section["rows"])]
    return "\n".join(lines) + "\n"


def table(rows: list[dict]) -> list[str]:
    """A row each, with all columns that one of them has."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [line_of(columns), line_of(["---"] * len(columns))]
    for row in rows:
        lines.append(line_of([cell(row.get(column)) for column in columns]))
    return lines


def line_of(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def cell(value) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", "<br>")
