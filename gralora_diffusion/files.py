"""Files that are complete or absent, their digests and names, and HTML from templates."""

import contextlib
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """A text file, complete or absent."""
    with complete_or_absent(path) as part:
        part.write_text(text, encoding="utf-8")


def resolved(path: Path) -> Path:
    """The path without links, as far as there is one: a loop of links, as names of others may hold, stays."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # RuntimeError: a loop, before Python 3.13
        return path.absolute()


def sync(folder: Path) -> None:
    """Make names in this folder last through a power failure, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def complete_or_absent(path: str | Path) -> Iterator[Path]:
    """Another name to write under; then synced, given the umask's mode, and renamed to `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(
        f".{path.name}.{uuid.uuid4().hex[:12]}.part"
    )  # threads and other machines may write it too
    try:
        yield part
        os.umask(mask := os.umask(0))
        part.chmod(0o666 & ~mask)
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Another name to write a folder under; then renamed to `path`."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def move(source: Path, target: Path) -> None:
    """Rename a file or folder, to another disk too: the source is deleted once the copy is complete.

    Raises OSError, with the source as it was and no target.
    """
    try:
        os.replace(source, target)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        copy_synced(source, part)
        os.replace(part, target)
    except BaseException:
        delete(part)
        raise
    gone = source.with_name(f".{source.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        os.replace(source, gone)  # so that a source which is half deleted is never taken for a whole one
    except BaseException:
        delete(target)
        raise
    delete(gone)


def move_all(targets: dict[Path, Path]) -> None:
    """move() each of {source: target}; where one fails, those before it go back, as move_back() says."""
    moved = {}
    try:
        for source, target in targets.items():
            move(source, target)
            moved[source] = target
    except BaseException:
        move_back(moved)
        raise


def move_back(moved: dict[Path, Path]) -> None:
    """Undo move_all(); a file that cannot go back stays at its target, and the others still go back."""
    for source, target in moved.items():
        with contextlib.suppress(OSError):
            move(target, source)


def copy_synced(source: Path, target: Path) -> None:
    """A copy of a file or folder, with times and links as they are, that lasts through a power cut."""
    if source.is_symlink() or not source.is_dir():
        shutil.copy2(source, target, follow_symlinks=False)
        copied = [target]
    else:
        shutil.copytree(source, target, symlinks=True)
        copied = target.rglob("*")
    for path in copied:
        if path.is_file() and not path.is_symlink():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def delete(path: Path) -> None:
    """Delete a file, link or folder, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def without_folders(name: str) -> str:
    """The last component of a path, which says nothing of this machine; a hub id, owner/name, as it is.

    A snapshot in the hub's cache gets the hub id that it is of.
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part]
    for part in parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/", 1)
    is_path = len(parts) > 2 or name.startswith(("/", "\\", ".", "~")) or ":" in name
    is_path = is_path or name.endswith((".safetensors", "/", "\\")) or os.path.exists(name)
    if not is_path:
        return name
    if set(parts[-1:]) <= {"..", "."}:
        return os.path.basename(os.path.abspath(name))
    return parts[-1]


def render(template: str, **values) -> str:
    """A page, or a part of one, from one of the package's templates, with every value escaped.

    template: its path in the package, such as training/templates/report.html.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("gralora_diffusion", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page = environment.get_template(template).render(values)
    return page.encode(errors="backslashreplace").decode()  # names of files may be no UTF-8
