"""The header that kohya's sd-scripts and the model spec 1.0.1 give a LoRA of SDXL, and our own facts."""

import datetime
import json

import torch

from gralora_diffusion import __version__
from gralora_diffusion.files import without_folders
from gralora_diffusion.formats.adapter_state import Adapter
from gralora_diffusion.formats.tensor_hashes import hashes_of
from gralora_diffusion.options import to_dict
from gralora_diffusion.sdxl.objective import header_of

WHOLE_SCHEDULE = [0, 1000]  # of timesteps
TAGS = 10  # of modelspec.tags
TAG_LENGTH = 64  # characters; longer ones are sentences
PENULTIMATE = "2"  # the layer of the text encoders that SDXL reads, counted from the end


def kohya_header(title: str, adapter: Adapter, rank: int, tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """The whole header of a file with these tensors; rank: the largest.

    Without facts of a training it has what A1111, Forge and the model spec need, and no more.
    """
    header = sd_scripts_lines(title, adapter, rank)
    header |= header_of(adapter.facts.get("objective", {}))
    header = {name: as_utf8(text) for name, text in header.items()}
    hashes = hashes_of(tensors, header)
    header |= {"sshs_model_hash": hashes.sha256, "sshs_legacy_hash": hashes.legacy}
    header |= model_spec(title, adapter)
    header["modelspec.hash_sha256"] = f"0x{hashes.sha256}"
    header |= {
        "gralora.version": __version__,
        "gralora.config": json.dumps(to_dict(adapter.config)),
        "gralora.layers_per_block": str(adapter.facts.get("layers_per_block", 2)),
        "gralora.facts": facts_text(adapter, thumbnail=False),
    }
    return {name: as_utf8(text) for name, text in header.items()}


def sd_scripts_lines(title: str, adapter: Adapter, rank: int) -> dict[str, str]:
    """The lines ss_*, as sd-scripts names and writes them."""
    training = adapter.facts.get("training", {})
    tags = training.get("tag_frequency")
    if tags is None:
        prompt = trigger_of(adapter)
        tags = {"instance": {prompt: 1}} if prompt else {}
    lines = {f"ss_{name}": str(value) for name, value in training.get("values", {}).items()}
    lines |= {
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_v2": "False",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank),
        "ss_output_name": title,
        "ss_tag_frequency": json.dumps(tags),
    }
    if any(adapter.kernel(component, path) for component, path, _ in adapter.items()):
        lines["ss_network_args"] = json.dumps(dict(conv_dim=str(rank), conv_alpha=str(rank)))
    for name in ("dataset_dirs", "reg_dataset_dirs"):
        if name in training:
            lines[f"ss_{name}"] = json.dumps(training[name])
    return lines


def model_spec(title: str, adapter: Adapter) -> dict[str, str]:
    """The lines modelspec.* but those of the prediction and the hash.

    https://github.com/Stability-AI/ModelSpec
    """
    training = adapter.facts.get("training", {})
    side = training.get("resolution") or adapter.facts.get("resolution", 1024)
    lines = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": title,
        "modelspec.resolution": f"{side}x{side}",
    }
    if trigger := trigger_of(adapter):
        lines["modelspec.trigger_phrase"] = trigger
    if parents := parents_of(adapter):
        lines["modelspec.merged_from"] = ", ".join(parents)
    if tags := tags_of(adapter):
        lines["modelspec.tags"] = ", ".join(tags)
    if "finished_at" in training:
        moment = datetime.datetime.fromtimestamp(int(training["finished_at"]), datetime.UTC)
        lines["modelspec.date"] = moment.isoformat()
    if training:
        layer = training.get("values", {}).get("clip_skip")
        lines["modelspec.encoder_layer"] = str(layer) if type(layer) is int else PENULTIMATE
    if "thumbnail" in training:
        lines["modelspec.thumbnail"] = training["thumbnail"]
    if (timesteps := training.get("timestep_range")) not in (None, WHOLE_SCHEDULE):
        lines["modelspec.timestep_range"] = ",".join(map(str, timesteps))
    return lines


def trigger_of(adapter: Adapter) -> str | None:
    return (adapter.facts.get("prompts") or {}).get("instance_prompt")


def parents_of(adapter: Adapter) -> list[str]:
    """The names of the adapters that this one was merged from, or the one that it was started from."""
    if merged := adapter.facts.get("merged_from"):
        return merged
    parent = adapter.facts.get("parent")
    return [parent["name"]] if parent else []


def tags_of(adapter: Adapter) -> list[str]:
    """The commonest tags of the captions."""
    counts: dict[str, int] = {}
    for tags in adapter.facts.get("training", {}).get("tag_frequency", {}).values():
        for tag, count in tags.items():
            counts[tag] = counts.get(tag, 0) + count
    short = [tag for tag in sorted(counts, key=counts.get, reverse=True) if len(tag) <= TAG_LENGTH]
    return short[:TAGS]


def public_facts(adapter: Adapter) -> dict:
    """The facts without those that every writer sets anew, and without the folders of this machine."""
    facts = {name: value for name, value in adapter.facts.items() if name not in ("version", "config")}
    base = facts.get("base", {})
    if isinstance(base.get("name"), str):
        facts["base"] = base | dict(name=without_folders(base["name"]))
    return facts


def facts_text(adapter: Adapter, thumbnail: bool = True) -> str:
    """The facts as JSON; without the thumbnail where the header has a line for it."""
    facts = public_facts(adapter)
    if not thumbnail and "training" in facts:
        facts["training"] = {name: part for name, part in facts["training"].items() if name != "thumbnail"}
    return as_utf8(json.dumps(facts, ensure_ascii=False))


def as_utf8(text: str) -> str:
    """The text with ? for what UTF-8 cannot hold, such as bytes of a file's name in another encoding."""
    return text.encode(errors="replace").decode()
