"""Captions of images, beside them or in metadata.jsonl: the one that counts in training, and edits."""

import json
import os
from pathlib import Path

from gralora_diffusion.data import captions
from gralora_diffusion.data.file_names import composed
from gralora_diffusion.data.listing import CAPTIONS, caption_stems, is_among
from gralora_diffusion.data.metadata import metadata_in
from gralora_diffusion.data.text_files import lines_of
from gralora_diffusion.files import write_text
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui import metadata_rows
from gralora_diffusion.ui.locks import changing
from gralora_diffusion.ui.workspace import real_file

MAX_CAPTION = 2000  # characters


def captions_beside(image: Path) -> dict[str, Path]:
    """{file name with its ending in lower case: caption file} of an image; links are left out."""
    own = caption_stems([image])
    files = [image.with_name(name) for name in sorted(os.listdir(image.parent))]
    files = [path for path in files if path.suffix.lower() in CAPTIONS and is_among(path.stem, own)]
    return captions.by_name(path for path in files if real_file(path))


def found_caption(image: Path, beside: dict[str, Path]) -> captions.Caption:
    """An image's caption as training finds it, of several lines the first; "" where it has none."""
    try:
        return captions.caption_of(image, beside, metadata_rows.captions_in(image.parent), "")
    except (OSError, ValueError):
        return captions.Caption("")


def caption_of(image: Path) -> str:
    """The text of found_caption()."""
    return one_line(found_caption(image, captions_beside(image)).text)


def one_line(text: str) -> str:
    """The text with single spaces; half a character, which neither files nor browsers take, becomes "?"."""
    return " ".join(text.split()).encode(errors="replace").decode()


def write_captions(edits: dict[Path, str]) -> None:
    """Write the captions of images of one folder, {image: caption}; where one cannot be, none is written.

    Raises ConfigError as edit() does, and for an image that was deleted meanwhile.
    """
    if not edits:
        return
    folder = next(iter(edits)).parent
    with changing(folder):
        files, rows = [], {}
        for image, caption in edits.items():
            if not real_file(image):
                raise ConfigError(f"{image.name} is no longer in the dataset: reload the page")
            if found_caption(image, captions_beside(image)).in_metadata:
                rows[image.name] = checked(image, caption)
            else:
                files.append(edit(image, caption))
        for file, content in files:
            write_edit(file, content)
        if rows:
            metadata_rows.edit(folder, rows)


def write_edit(file: Path, content: str | None) -> None:
    if content is None:
        file.unlink(missing_ok=True)
    else:
        write_text(file, content)


def write_caption(image: Path, caption: str) -> None:
    write_captions({image: caption})


def checked(image: Path, caption: str) -> str:
    """The caption as one line.  Raises ConfigError where it is too long."""
    caption = one_line(caption)
    if len(caption) > MAX_CAPTION:
        problem = f"the caption of {image.name} has {len(caption)} characters; the limit is {MAX_CAPTION}"
        raise ConfigError(problem)
    return caption


def edit(image: Path, caption: str) -> tuple[Path, str | None]:
    """(file beside the image, its content with this caption, or None where it is to be deleted).

    It is the file that training reads, and keeps its other lines. With an empty caption the trigger prompt is
    used. Raises ConfigError if the caption is too long, or if another one would replace an empty one.
    """
    caption = checked(image, caption)
    beside = captions_beside(image)
    found = found_caption(image, beside)
    if not found.text:
        return beside.get(
            composed(f"{image.stem}.txt"), image.with_suffix(".txt")
        ), f"{caption}\n" if caption else None
    (file,) = [path for path in beside.values() if path.name == found.file]
    if not caption:
        refuse_another(image, found, {name: path for name, path in beside.items() if path != file})
    if file.suffix.lower() == ".json":
        content = in_json(file, caption)
    else:
        content = in_text(file, caption) if caption else None
    if content and len(content.encode(errors="replace")) > captions.MAX_BYTES:
        raise ConfigError(f"{file.name} would be longer than {captions.MAX_BYTES:,} bytes with this caption")
    return file, content


def refuse_another(image: Path, found: captions.Caption, others: dict[str, Path]) -> None:
    """Raises ConfigError if an image whose caption is deleted would get another one."""
    if found.lines > 1:
        problem = (
            f"{found.file} has {found.lines} lines; without the first one, the next would be the caption"
        )
        raise ConfigError(f"{problem} of {image.name}: change the first line instead of deleting it")
    other = found_caption(image, others)
    if other.text:
        name = other.file or metadata_in(image.parent).name
        problem = f"without the caption in {found.file}, {name} would be the caption of {image.name}"
        raise ConfigError(f"{problem}: change the caption instead of deleting it")


def in_text(file: Path, caption: str) -> str:
    """The content of a text file with another first line; blank lines before it stay."""
    lines = lines_of(captions.caption_file(file).text)
    number = next(number for number, line in enumerate(lines) if line.strip())
    lines[number] = caption
    return "\n".join(lines).rstrip("\n") + "\n"


def in_json(file: Path, caption: str) -> str:
    """The content of a JSON file with another caption; tags at its end stay tags, other keys as they are."""
    try:
        entry = json.loads(captions.caption_file(file).text)
        tags = entry.pop("tags", None)
        end = ", ".join(tags) if isinstance(tags, list) else tags
        if end and caption.endswith(f", {one_line(end)}"):
            entry["tags"] = tags
            caption = caption.removesuffix(f", {one_line(end)}")
        entry["caption" if "caption" in entry or "text" not in entry else "text"] = caption
        return json.dumps(entry, indent=2) + "\n"
    except RecursionError:
        raise ConfigError(f"{file.name} cannot be edited: it is nested too deeply") from None
