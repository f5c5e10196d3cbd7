"""A finished run on the hub: its adapter files, its samples, and a model card."""

import glob
import json
import re
from pathlib import Path

import yaml

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.files import resolved, without_folders, write_text
from gralora_diffusion.formats.preview import all_samples
from gralora_diffusion.formats.read import DIFFUSERS
from gralora_diffusion.formats.run_files import named_after
from gralora_diffusion.options import ConfigError, TrainingError, from_dict
from gralora_diffusion.training.best import best_of
from gralora_diffusion.training.run_folder import public_options, read_evaluations
from gralora_diffusion.training.validation_images import prompts_of

UPLOADED = ["README.md", "*.safetensors", "before_after.png", "samples/*", "environment.json"]
NOT_UPLOADED = ["checkpoint-*/*", ".*", "logs/*"]
CONFIG = "config.json"  # uploaded without the folders of this machine
TAGS = (
    "text-to-image",
    "diffusers",
    "lora",
    "stable-diffusion-xl",
    "stable-diffusion-xl-diffusers",
    "template:sd-lora",
)
CARD = """---
{facts}---
# {name}

An SDXL adapter ({adapter}), trained on {base}.
Its trigger prompt: `{prompt}`.

| file | for |
|---|---|
| `{lora}` | ComfyUI, A1111, Forge, kohya's scripts |
| `{diffusers}` | diffusers: `pipeline.load_lora_weights("REPOSITORY", weight_name="{diffusers}")` |
| `adapter.safetensors` | gralora_diffusion: small, and can be trained further |
"""


def check_hub(config: TrainConfig, run: Path) -> None:
    """Raises ConfigError where --push_to_hub cannot work with this name, token or network."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name_of(config, run))
    except HFValidationError:
        given = f"the run folder's name {name_of(config, run)!r}"
        if config.hub_model_id:
            given = f"--hub_model_id {config.hub_model_id!r}"
        allowed = "up to 96 letters, digits, '-', '_' and '.', optionally after your user name and '/'"
        problem = f"{given} cannot be the name of a repository: use --hub_model_id with {allowed}"
        raise ConfigError(problem, option="hub_model_id") from None
    if config.hub_token and not re.fullmatch(r"[!-~]+", config.hub_token):
        problem = "--push_to_hub cannot work here: --hub_token holds a space, a line break or"
        problem += " another character that no token has"
        raise ConfigError(problem, option="hub_token")
    try:
        HfApi(token=config.hub_token).whoami()
    except Exception as error:  # its HTTP library's errors have no common class
        problem = f"--push_to_hub cannot work here: {first_line(error, config.hub_token)}"
        ways = "log in with `hf auth login`, or drop the option"
        raise ConfigError(f"{problem}; {ways}", option="push_to_hub") from None


def first_line(error: Exception, token: str | None) -> str:
    """An error's first line, without the token."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].replace(token, "***") if token else lines[0]


def name_of(config: TrainConfig, run: Path) -> str:
    """The repository's name; the hub puts the user's name before it."""
    return config.hub_model_id or resolved(run).name


def push(run: Path, config: TrainConfig) -> str:
    """Write the model card and upload; returns the page's address. Raises TrainingError.

    Paths in config.json are uploaded as their last components.
    """
    from huggingface_hub import HfApi

    write_card(run)
    api, name = HfApi(token=config.hub_token), name_of(config, run)
    preview = glob.escape(named_after(run, ".png").name)
    try:
        repository = api.create_repo(name, exist_ok=True).repo_id
        api.upload_folder(
            repo_id=repository,
            folder_path=run,
            allow_patterns=[*UPLOADED, preview],
            ignore_patterns=NOT_UPLOADED,
        )
        api.upload_file(path_or_fileobj=public_config(run), path_in_repo=CONFIG, repo_id=repository)
    except Exception as error:  # whatever the network does, the run is safe
        problem = f"{run} is complete, but it could not be uploaded as {name}"
        raise TrainingError(f"{problem}: {first_line(error, config.hub_token)}") from None
    return f"https://huggingface.co/{repository}"


def public_config(run: Path) -> bytes:
    """config.json without the folders of this machine."""
    values = json.loads((run / CONFIG).read_text())
    return (json.dumps(public_options(values), indent=2) + "\n").encode()


def samples_of_export(run: Path, config: TrainConfig) -> Path | None:
    """The folder of the sample images of the step that was exported; None without any."""
    best = best_of(read_evaluations(run), config.keep_best) if config.keep_best else None
    of_best = run / "samples" / f"step-{best['step']:05d}" if best else None
    if of_best and of_best.is_dir():
        return of_best
    return next(reversed(all_samples(run)), None)


def write_card(run: Path) -> None:
    """Write run/README.md, the model card: prompt, base, how to load the files, and samples."""
    config = from_dict(TrainConfig, json.loads((run / "config.json").read_text()))
    base, adapter = config.pretrained_model_name_or_path, config.adapter
    facts = dict(
        library_name="diffusers",
        tags=[*TAGS, config.adapter_name],
        instance_prompt=config.instance_prompt,
    )
    if base and without_folders(base) == base:
        facts["base_model"] = base
    if samples := samples_of_export(run, config):
        prompts = [p for p in prompts_of(config) for _ in range(config.num_validation_images)]
        images = sorted(samples.glob("*.png"))
        facts["widget"] = [
            dict(text=prompt, output=dict(url=str(image.relative_to(run))))
            for prompt, image in zip(prompts, images, strict=False)
        ]
    card = CARD.format(
        facts=yaml.safe_dump(facts, sort_keys=False, allow_unicode=True),
        name=resolved(run).name,
        adapter=f"{config.adapter_name}, rank {adapter.rank}, on {adapter.targets}",
        base=without_folders(base) if base else "the embedded base of gralora_diffusion",
        lora=named_after(run).name,
        prompt=config.instance_prompt,
        diffusers=DIFFUSERS,
    )
    write_text(run / "README.md", card)
