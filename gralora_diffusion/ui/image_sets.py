"""Sets of images: the folders HOME/images/NAME, with 00.txt as the caption of 00.png."""

import collections
import hashlib
import re
import secrets
import shutil
from pathlib import Path

from gralora_diffusion.data.images import EXTENSIONS, open_image
from gralora_diffusion.data.listing import DOCUMENTS, caption_stems, listing, numbered, reason_by_name
from gralora_diffusion.data.masks import masks_of, without_masks
from gralora_diffusion.data.metadata import metadata_in
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui import metadata_rows, removed
from gralora_diffusion.ui.caption_files import caption_of, captions_beside, one_line, write_captions
from gralora_diffusion.ui.locks import NAMES, changing
from gralora_diffusion.ui.needed import check_unneeded
from gralora_diffusion.ui.run_configs import IMAGE_OPTIONS, replace_folder
from gralora_diffusion.ui.workspace import BUNDLED, Workspace, folders, new_name, quoted, real_file

MAX_FILES = 500  # of a set
COPYING = ".copying-"  # how the folder of an unfinished copy begins, in HOME/images
IN_FOLDERS = "a folder with repeats in its name: training reads it, but this page does not display it"
COPY = re.compile(r"\.copying-[0-9a-f]{16}")
FEW = 3  # images; a set with fewer gets a warning
Finding = tuple[str, str, str]  # (file, what is wrong, what to do)


def images_of(folder: Path) -> list[Path]:
    """The images of a set by name, without the masks beside them."""
    return without_masks(image_files(folder))


def image_files(folder: Path) -> list[Path]:
    """The images and masks of a set by name; links are left out."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS and real_file(p))


def masks_in(folder: Path) -> dict[Path, Path]:
    """{image: its mask}, as training finds them beside the images.

    Raises ConfigError where two files could be the mask of one image.
    """
    try:
        return masks_of(image_files(folder))
    except ValueError as error:
        raise ConfigError(str(error).replace(f"{folder}/", "")) from None


def create(workspace: Workspace, name: str) -> str:
    """Make an empty set; raises ConfigError for a name that is taken or cannot be a folder's."""
    with NAMES:
        name = new_name(name, "a dataset", workspace.set_names())
        (workspace.images / name).mkdir()
    return name


def editable(workspace: Workspace, name: str) -> Path:
    """The folder of a set that may be changed; raises ConfigError for the bundled one."""
    if name == BUNDLED:
        raise ConfigError("the bundled images cannot be changed: create a dataset, or duplicate this one")
    return workspace.image_set(name)


def copy(workspace: Workspace, name: str, new: str) -> str:
    """A new set with the images, masks and captions of another, which may be edited meanwhile."""
    new_name(new, "a dataset", workspace.set_names())
    source = workspace.image_set(name)
    folder = source.stat().st_ino
    part = workspace.images / f"{COPYING}{secrets.token_hex(8)}"
    part.mkdir()
    try:
        with changing(source):
            files = image_files(source)
            rows = metadata_rows.rows_of(source, [path.name for path in files])
        for path in files:
            with changing(source):  # of each alone, so that nobody waits for all
                if real_file(path):
                    copy_file(path, part)
        if not source.is_dir() or source.stat().st_ino != folder:  # or another one has its name by now
            raise ConfigError(f"the dataset {name} was renamed or deleted before all of it was copied")
        rows = [row for row in rows if (part / row["file_name"]).exists()]
        if rows:
            metadata_rows.add(part, rows)
        with NAMES:
            new = new_name(new, "a dataset", workspace.set_names())
            part.rename(workspace.images / new)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return new


def copy_file(path: Path, folder: Path) -> None:
    """Copy an image or a mask with the captions beside it."""
    for file in (path, *captions_beside(path).values()):
        shutil.copyfile(file, folder / file.name)


def delete_unfinished_copies(workspace: Workspace) -> None:
    """Delete what copy() left when the process was killed; to be called while nothing is copied."""
    for path in workspace.images.glob(f"{COPYING}*"):
        if COPY.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def save_captions(workspace: Workspace, name: str, captions: dict[str, str]) -> list[str]:
    """Write the captions that changed, {file: caption}; returns those files.

    Raises ConfigError, and writes none, for a file of no set and a caption that cannot be written.
    """
    with changing(editable(workspace, name)):
        images = {path.name: path for path in images_of(editable(workspace, name))}
        edits = {}
        for file, caption in captions.items():
            if file not in images:
                raise ConfigError(f"the dataset {name} has no image named {quoted(file)}: reload the page")
            if not isinstance(caption, str):
                raise ConfigError(f"the caption of {file} is not text")
            if one_line(caption) != caption_of(images[file]):
                edits[images[file]] = caption
        write_captions(edits)
        return [path.name for path in edits]


def add_prefix(workspace: Workspace, name: str, prefix: str, files: list[str] | None = None) -> None:
    """Put a text at the front of each caption that does not begin with it; files: of these images only."""
    prefix = prefix.strip()
    if not prefix:
        raise ConfigError("the prefix is empty")
    with changing(editable(workspace, name)):
        captions = {path.name: caption_of(path) for path in images_of(editable(workspace, name))}
        if files is not None:
            captions = {file: captions.get(file, "") for file in files}
        save_captions(
            workspace,
            name,
            {file: f"{prefix} {text}" for file, text in captions.items() if not text.startswith(prefix)},
        )


def replace_in_captions(workspace: Workspace, name: str, find: str, replacement: str) -> int:
    """Replace a text in all captions of a set; returns how many captions changed."""
    if not find:
        raise ConfigError("the text to find is empty")
    with changing(editable(workspace, name)):
        captions = {path.name: caption_of(path) for path in images_of(editable(workspace, name))}
        changed = {file: text.replace(find, replacement) for file, text in captions.items() if find in text}
        return len(save_captions(workspace, name, changed))


def tag_counts(workspace: Workspace, name: str) -> list[tuple[str, int]]:
    """(tag, in how many captions) of the comma-separated parts of the captions, the most frequent first."""
    counts = collections.Counter()
    for path in images_of(workspace.image_set(name)):
        parts = [part.strip() for part in caption_of(path).split(",")]
        if len(parts) > 1:
            counts.update(set(filter(None, parts)))
    return counts.most_common()


def rename(workspace: Workspace, name: str, new: str) -> str:
    """Give a set another name, also in the configs of runs that read it, so that those can be resumed.

    Raises ConfigError while an active or queued run reads it, and OSError; then it keeps its name.
    """
    with changing(editable(workspace, name)), changing(workspace.runs):
        folder = editable(workspace, name)  # it may be gone since
        check_unneeded(workspace, folder, "rename")
        old_bin = workspace.removed_images / name
        with NAMES:
            new = new_name(new, "a dataset", workspace.set_names())
            renamed = workspace.images / new
            move_bin(old_bin, workspace.removed_images / new)
            try:
                folder.rename(renamed)
                try:
                    replace_folder(workspace, IMAGE_OPTIONS, folder, renamed)
                except BaseException:
                    renamed.rename(folder)
                    raise
            except BaseException:
                move_bin(workspace.removed_images / new, old_bin)
                raise
        return new


def move_bin(old: Path, new: Path) -> None:
    """Let what was removed from a set follow it to its new name."""
    if old.is_dir() and not removed.is_link(old) and not removed.is_link(new):
        delete_bin(new)  # of a set that was deleted by hand
        old.rename(new)


def delete_bin(bin_folder: Path) -> None:
    """Delete what was removed from a set; what is behind a link stays."""
    if not removed.is_link(bin_folder):
        shutil.rmtree(bin_folder, ignore_errors=True)


def delete(workspace: Workspace, name: str) -> None:
    """Delete a set with all its images; runs that trained on it cannot be resumed without them.

    Raises ConfigError while an active or queued run reads it.
    """
    with changing(editable(workspace, name)):
        folder = editable(workspace, name)
        check_unneeded(workspace, folder, "delete")
        with NAMES:  # or another set might get the name, with its own bin, in between
            shutil.rmtree(folder)
            delete_bin(workspace.removed_images / name)  # a new set of this name gets none of it


def check_set(workspace: Workspace, name: str, resolution: int) -> list[Finding]:
    """Whatever in a set may harm a run at this resolution."""
    folder = workspace.image_set(name)
    images = images_of(folder)
    findings = []
    read = [path.name for path, *_ in numbered(folder)] if not images else []
    findings += [(name, IN_FOLDERS, "train on it as it is") for name in read]
    if len(images) < FEW and not read:
        count = f"{len(images) or 'no'} image{'' if len(images) == 1 else 's'}"
        findings.append((name, count, f"add some: {FEW} to 20 are usual"))
    seen = {}
    for path in images:
        findings += check_image(path, resolution, seen)
    findings += check_masks(folder, images)
    if problem := metadata_rows.problem_in(folder):
        findings.append((metadata_in(folder).name, f"cannot be used: {problem}", "correct or delete it"))
    findings += check_names(folder, images)
    unused = [p.name for p in folder.iterdir() if p.is_symlink()] + [p.name for p in folders(folder)]
    unused = [file for file in unused if file not in read]
    findings += [(file, "a link or a folder", "it is not used; remove it") for file in sorted(unused)]
    return findings


def why_empty(workspace: Workspace, name: str) -> str:
    """Why the page displays no image of a set that has none itself, and what to do."""
    read = numbered(workspace.image_set(name))
    if not read:
        return "No images in this dataset yet: drop some into the box."
    names = ", ".join(path.name for path, *_ in read[:FEW]) + (" ..." if len(read) > FEW else "")
    where, of_names = ("its folder", "this name") if len(read) == 1 else ("its folders", "these names")
    return (
        f"The images of this dataset are in {where} ({names}). Training reads them, with the repeats "
        f"and captions of {of_names}; to see and edit them here, drop them as files or as a zip archive."
    )


def check_names(folder: Path, images: list[Path]) -> list[Finding]:
    """Findings on the files that by their names are neither images nor captions that training reads."""
    files, _, bad = listing(folder, "instance_data_dir")
    stems = caption_stems(images)
    findings = []
    for path in files:
        if reason := reason_by_name(path, stems):
            bad[path] = reason
        elif path.suffix.lower() in DOCUMENTS:
            findings.append((path.name, "neither an image nor a caption", "it is not read; remove it"))
    for path, reason in sorted(bad.items()):
        findings.append((path.name, reason, "training refuses it: rename or remove it"))
    return [finding for finding in findings if not (folder / finding[0]).is_symlink()]


def check_masks(folder: Path, images: list[Path]) -> list[Finding]:
    """Findings on the masks beside the images."""
    try:
        used = set(masks_in(folder).values())
    except ConfigError as error:
        return [("masks", str(error), "remove one of the two")]
    others = [path for path in image_files(folder) if path not in used and path not in images]
    return [(path.name, "a mask without an image of its name", "remove or rename it") for path in others]


def check_image(path: Path, resolution: int, seen: dict[str, str]) -> list[Finding]:
    """Findings on one image; seen: {digest of the pixels: file} of those before, to which it is added."""
    try:
        image = open_image(path)
    except Exception as error:  # a decoder may raise any error on a damaged file
        return [(path.name, f"cannot be used: {error}", "remove it")]
    findings = []
    size = f"{image.width} x {image.height} pixels"
    if min(image.size) < resolution:
        advice = "use a larger one, or a lower resolution"
        findings.append((path.name, f"{size}, less than {resolution}", advice))
    if max(image.size) > 2 * min(image.size):
        findings.append((path.name, f"{size}: training crops squares from it", "look at Preview crops"))
    digest = hashlib.sha256(image.tobytes()).hexdigest()
    if digest in seen:
        findings.append((path.name, f"the same image as {seen[digest]}", "remove one of them"))
    seen.setdefault(digest, path.name)
    if not caption_of(path):
        advice = "write one; without it, the Trigger caption of Train is used"
        findings.append((path.name, "no caption of its own", advice))
    return findings
