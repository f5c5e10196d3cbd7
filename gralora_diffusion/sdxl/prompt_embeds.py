"""Prompts and negative prompts as the embeddings that the pipeline takes in their place."""

import itertools

import torch

from gralora_diffusion.sdxl.base import embed_chunks, embed_readings
from gralora_diffusion.sdxl.placement import TOKENS, bring
from gralora_diffusion.sdxl.prompt_chunks import PENULTIMATE, common_chunks, read_prompt
from gralora_diffusion.sdxl.sampling_settings import SamplingSettings

EMBEDS = (  # what SDXL's encode_prompt() returns
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)


def batches_of(
    pipeline, wanted: list[tuple[str, int]], settings: SamplingSettings, embeds: dict | None, batch_size: int
) -> list[list[tuple[str, int]]]:
    """The images in batches, in which all prompts have the same number of tokens."""
    rules, negative = settings.rules(), negatives(settings)

    def length(prompt: str) -> int:
        if embeds is not None:
            return embeds[prompt]["prompt_embeds"].shape[1]
        return common_chunks(read_prompt(pipeline, text, rules).chunks for text in (prompt, *negative))

    lengths = {prompt: length(prompt) for prompt in dict.fromkeys(prompt for prompt, _ in wanted)}
    batches = []
    for _, group in itertools.groupby(wanted, key=lambda image: lengths[image[0]]):
        members = list(group)
        batches += [members[start : start + batch_size] for start in range(0, len(members), batch_size)]
    return batches


def embed_batches(
    pipeline, batches: list, settings: SamplingSettings, embeds: dict | None, device: torch.device
) -> list[dict[str, torch.Tensor]]:
    """What the pipeline takes in the place of each batch's prompts."""
    found = []
    if embeds is None:
        bring(pipeline, ("text_encoder", "text_encoder_2"), device, TOKENS)
    for batch in batches:
        prompts = [prompt for prompt, _ in batch]
        if embeds is None:
            found.append(embedded(pipeline, prompts, device, settings))
            continue
        of_prompts = [embeds[prompt] for prompt in prompts]
        found.append({name: torch.cat([e[name] for e in of_prompts]) for name in of_prompts[0]})
    return found


def embedded(pipeline, prompts: list[str], device, settings: SamplingSettings) -> dict[str, torch.Tensor]:
    """{argument of the pipeline: its value} for these prompts, with guidance's negative where it is used."""
    rules, negative = settings.rules(), negatives(settings)
    readings = [read_prompt(pipeline, prompt, rules) for prompt in prompts]
    of_negative = [read_prompt(pipeline, prompt, rules) for prompt in negative]
    plain = all(reading.plain for reading in (*readings, *of_negative))
    if plain and settings.clip_skip == PENULTIMATE:
        parts = pipeline.encode_prompt(
            prompt=prompts,
            device=device,
            do_classifier_free_guidance=settings.guidance_scale > 1,
            negative_prompt=negative * len(prompts) or None,
        )
        return {name: part for name, part in zip(EMBEDS, parts, strict=True) if part is not None}
    chunks = common_chunks(reading.chunks for reading in (*readings, *of_negative))
    embeds, pooled = embed_chunks(pipeline, readings, settings.clip_skip, chunks)
    found = dict(prompt_embeds=embeds, pooled_prompt_embeds=pooled)
    if settings.guidance_scale > 1:
        away = negative or [""]
        of_away = of_negative or [read_prompt(pipeline, "", rules)]
        other = embed_readings(pipeline, away, of_away, settings.clip_skip, chunks)
        n = len(prompts)
        found["negative_prompt_embeds"] = other.embeds.expand(n, -1, -1)
        found["negative_pooled_prompt_embeds"] = other.pooled.expand(n, -1)
    return {name: tensor.to(device) for name, tensor in found.items()}


def negatives(settings: SamplingSettings) -> list[str]:
    """The negative prompt, if it is there and guidance uses it."""
    return [settings.negative_prompt] if settings.negative_prompt and settings.guidance_scale > 1 else []


@torch.no_grad()
def embed_prompts(
    pipeline, prompts: list[str], settings: SamplingSettings
) -> dict[str, dict[str, torch.Tensor]]:
    """{prompt: what the pipeline takes in its place, the negative prompt included}, on the CPU."""
    found = {}
    for prompt in dict.fromkeys(prompts):
        parts = embedded(pipeline, [prompt], pipeline.text_encoder.device, settings)
        found[prompt] = {name: part.cpu() for name, part in parts.items()}
    return found
