"""A finished run on the hub: its adapter files, its samples, and a model card."""

import json
import re
from pathlib import Path

import yaml

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.files import write_text
from gralora_diffusion.options import ConfigError, TrainingError, from_dict

UPLOADED = ["README.md", "*.safetensors", "before_after.png", "samples/*", "config.json", "environment.json"]
KEPT_HERE = ["checkpoint-*/*", ".*", "logs/*"]


def check_hub(config: TrainConfig, run: Path) -> None:
    """Raises ConfigError, before hours of training, when --push_to_hub cannot work with this name or token, or without a network."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name_of(config, run))
    except HFValidationError:
        given = (
            f"--hub_model_id {config.hub_model_id!r}"
            if config.hub_model_id
            else f"the run folder's name {name_of(config, run)!r}"
        )
        words = "letters, digits, '-', '_' and '.', at most 96, and perhaps your name and a '/' before them"
        raise ConfigError(
            f"{given} cannot be the name of a repository: give --hub_model_id with {words}"
        ) from None
    try:
        if config.hub_token and not re.fullmatch(r"[!-~]+", config.hub_token):
            raise ValueError("--hub_token holds a space or a line break")
        HfApi(token=config.hub_token).whoami()
    except Exception as error:  # its HTTP library's errors have no common class
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].replace(
            config.hub_token or "\0", "***"
        )
        raise ConfigError(
            f"--push_to_hub cannot work here: {first}; log in with `hf auth login`, or drop it"
        ) from None


def name_of(config: TrainConfig, run: Path) -> str:
    """What the repository is called; the hub puts the user's name before it."""
    return config.hub_model_id or run.resolve().name


def push(run: Path, config: TrainConfig) -> str:
    """Write the model card and upload; returns the page's address.  Raises TrainingError: the run itself is complete by then."""
    from huggingface_hub import HfApi

    write_card(run)
    api, name = HfApi(token=config.hub_token), name_of(config, run)
    try:
        repository = api.create_repo(name, exist_ok=True).repo_id
        api.upload_folder(
            repo_id=repository, folder_path=run, allow_patterns=UPLOADED, ignore_patterns=KEPT_HERE
        )
    except Exception as error:  # whatever the network does, the run is safe
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].replace(
            config.hub_token or "\0", "***"
        )
        raise TrainingError(f"{run} is complete, but it could not be uploaded as {name}: {first}") from None
    return f"https://huggingface.co/{repository}"


def write_card(run: Path) -> None:
    """run/README.md: what the hub shows, with the prompt, the base, how to load the files, and the samples."""
    config = from_dict(TrainConfig, json.loads((run / "config.json").read_text()))
    base = config.pretrained_model_name_or_path
    tags = [
        "text-to-image",
        "diffusers",
        "lora",
        "stable-diffusion-xl",
        "stable-diffusion-xl-diffusers",
        "template:sd-lora",
        config.adapter_name,
    ]
    facts = dict(library_name="diffusers", tags=tags, instance_prompt=config.instance_prompt)
    if base and not Path(base).exists():
        facts["base_model"] = base
    samples = sorted((run / "samples").glob("step-*"))
    if samples:
        prompts = [
            p.strip()
            for p in config.validation_prompt.split("|")
            for _ in range(config.num_validation_images)
        ]
        images = [str(p.relative_to(run)) for p in sorted(samples[-1].glob("*.png"))]
        facts["widget"] = [
            dict(text=text, output=dict(url=url)) for text, url in zip(prompts, images, strict=False)
        ]
    adapter = config.adapter
    text = f"""---
{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---
# {run.resolve().name}

An SDXL adapter ({config.adapter_name}, rank {adapter.rank}, on {adapter.targets}), trained on {base or "the embedded tiny base of gralora_diffusion"}.
The prompt it was taught: `{config.instance_prompt}`.

| file | for |
|---|---|
| `comfyui.safetensors` | ComfyUI, A1111, Forge, kohya's scripts |
| `pytorch_lora_weights.safetensors` | diffusers: `pipeline.load_lora_weights("REPOSITORY", weight_name="pytorch_lora_weights.safetensors")` |
| `adapter.safetensors` | gralora_diffusion: small, and can be trained on |
"""
    write_text(run / "README.md", text)
