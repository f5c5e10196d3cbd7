"""Adapters that the page offers: the base and prompt of each, and files that are added."""

import json
import shutil
from pathlib import Path

from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui.workspace import EMBEDDED, Workspace, free_name, new_name, quoted

AS_TRAINED = "same as training"  # the choice of a base: the adapter's own
EMBEDDED_HEADER = "embedded tiny base"  # the embedded base in an adapter file's header


def base_of(workspace: Workspace, adapter: str) -> str | None:
    """The base that an adapter was trained on, as --pretrained_model_name_or_path takes it."""
    name, _, checkpoint = adapter.partition("/")
    if not checkpoint and name.endswith(".safetensors"):
        base = base_in_header(workspace.adapter(adapter))
    else:
        base = config_values(workspace, name).get("pretrained_model_name_or_path")
    return None if base is None else workspace.base(str(base).removeprefix("models/"))


def base_in_header(path: Path) -> str | None:
    """The base that an adapter file names; None for the embedded one, or where it names none."""
    from gralora_diffusion.formats.read import HEADER
    from gralora_diffusion.formats.safetensors_files import read_safetensors

    try:
        facts = json.loads(read_safetensors(path)[0].get(HEADER, "{}"))
    except (ValueError, RecursionError):
        return None
    base = facts.get("base") if isinstance(facts, dict) else None
    name = base.get("name") if isinstance(base, dict) else None
    return None if name == EMBEDDED_HEADER else name


def config_values(workspace: Workspace, name: str) -> dict:
    """A run's config.json, without a check that every option is known."""
    run = workspace.run(name)
    try:
        values = json.loads((run / "config.json").read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"the config of {quoted(name)} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"the config of {quoted(name)} cannot be read: it is not a JSON object")
    return values


def prompt_of(workspace: Workspace, adapter: str) -> str:
    """The first sample prompt of an adapter's run, or else its trigger caption; "" where none is known."""
    try:
        values = config_values(workspace, adapter.partition("/")[0])
    except ConfigError:
        return ""
    texts = [values.get(name) for name in ("validation_prompt", "instance_prompt")]
    prompts = [text.partition("|")[0].strip() for text in texts if isinstance(text, str)]
    return next(filter(None, prompts), "")


def chosen_base(workspace: Workspace, choice: str | None, adapter: str | None) -> str | None:
    """The base that was chosen, or with no choice the adapter's own."""
    if choice not in (None, "", AS_TRAINED):
        return workspace.base(choice)
    return base_of(workspace, adapter) if adapter else workspace.base(EMBEDDED)


def add_adapter(workspace: Workspace, upload: str | Path) -> str:
    """Copy an uploaded adapter file to HOME/adapters; raises ConfigError unless it is one."""
    from gralora_diffusion.formats.read import read_adapter

    upload = Path(upload)
    if upload.suffix.lower() != ".safetensors":
        rule = "adapter files end in .safetensors; other formats can run code when they are read"
        raise ConfigError(f"{quoted(upload.name)} is not an adapter file: {rule}")
    try:
        read_adapter(upload)
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(upload), upload.name)) from None
    taken = [path.stem for path in workspace.adapters.iterdir()]
    try:
        name = new_name(upload.stem, "an adapter", taken)
    except ConfigError:
        name = free_name(upload.stem, taken)
    shutil.copyfile(upload, workspace.adapters / f"{name}.safetensors")
    return f"{name}.safetensors"
