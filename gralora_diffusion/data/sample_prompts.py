"""The sample prompts of a run that names none: its trigger, or what the captions share, in four scenes."""

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.data.captions import LINES
from gralora_diffusion.data.concepts import folder_concepts
from gralora_diffusion.data.image_folder import TrainingImage
from gralora_diffusion.data.wildcards import wildcard_forms
from gralora_diffusion.sdxl.prompt_weights import without_weights

SCENES = ("", " on a blue background", " in the snow", " on the beach")
MOST = 8  # prompts
LOOSE = {"a", "an", "the", "and", "or", "with", "in", "on", "at", "of", "is", "to", "from", "by", "for"}
MEDIA = {"photo", "photograph", "image", "picture", "drawing", "painting", "illustration", "rendering"}
ENDS = ",.;:"  # of words


def triggers(config: TrainConfig, images: list[TrainingImage]) -> list[str]:
    """The prompt of each concept: its own, or what its captions share; "" where they share nothing."""
    prompts = [concept.config.instance_prompt for concept in folder_concepts(config)]
    prompts = prompts or [config.instance_prompt]
    found = []
    for number, prompt in enumerate(prompts):
        if prompt and config.caption_wildcards:
            prompt = wildcard_forms(prompt)[0]
        captions = [example_of(image, config) for image in images if image.concept == number]
        found += [prompt] if prompt else shared(captions)
    return list(dict.fromkeys(found))


def example_of(image: TrainingImage, config: TrainConfig) -> str:
    """One form of an image's caption: its first line, with the first words of its wildcards."""
    line = image.caption.split(LINES)[0]
    wildcards = image.variation.caption_wildcards if image.variation else config.caption_wildcards
    return wildcard_forms(line)[0] if wildcards else line


def shared(captions: list[str]) -> list[str]:
    """What the captions share; where that is "a photo" or the like, what those of each subject share.

    Captions are of one subject if the first word that can name one is the same.
    """
    whole = shared_words(captions)
    if first_name(whole) or not whole:
        return [whole]
    by_subject: dict[str, list[str]] = {}
    for caption in captions:
        by_subject.setdefault(first_name(caption), []).append(caption)
    clear = 1 < len(by_subject) <= len(SCENES) and all(len(group) > 1 for group in by_subject.values())
    return [shared_words(group) for group in by_subject.values()] if clear else [whole]


def first_name(text: str) -> str:
    """The first word that can name a subject, in lower case; "" where there is none."""
    words = (word.strip(ENDS) for word in text.lower().split())
    return next((word for word in words if word and word not in LOOSE | MEDIA), "")


def shared_words(captions: list[str]) -> str:
    """The tags that all captions have, in the order of the first, or the words that all begin with.

    "" where they share nothing.
    """
    if not captions:
        return ""
    first = captions[0]
    if len(set(captions)) == 1:
        return first
    tags = [tags_of(caption) for caption in captions]
    common = [tag for tag in dict.fromkeys(tags[0]) if all(tag in others for others in tags)]
    if common:
        return ", ".join(common)
    begin = first.split()
    for caption in captions:
        words = caption.split()
        same = 0
        while same < min(len(begin), len(words)) and begin[same] == words[same]:
            same += 1
        begin = begin[:same]
    while begin and begin[-1].lower().strip(ENDS) in LOOSE:
        begin.pop()
    return " ".join(begin).rstrip(ENDS)


def tags_of(caption: str) -> list[str]:
    return [tag.strip() for tag in caption.split(",") if tag.strip()]


def trigger_of(config: TrainConfig, images: list[TrainingImage]) -> str:
    """The prompts that a run's files name, one for each subject; a caption where nothing is shared."""
    return ", ".join(filter(None, triggers(config, images)[:MOST])) or example_of(images[0], config)


def sample_prompts(config: TrainConfig, images: list[TrainingImage]) -> list[str]:
    """The prompts of --validation_prompt, or those that stand for the run's concepts.

    One concept is drawn in all scenes, several in fewer. Captions that share nothing are prompts themselves.
    """
    if config.validation_prompt:
        return [prompt.strip() for prompt in config.validation_prompt.split("|")]
    found = triggers(config, images)
    scenes = SCENES[: max(1, len(SCENES) // len(found))]
    prompts = []
    for trigger in found:
        if trigger:
            prompts += [trigger + scene for scene in scenes]
    if not prompts:
        captions = [example_of(image, config) for image in images]
        prompts = list(dict.fromkeys(captions))[: len(SCENES)]
    if not config.weighted_captions:  # brackets are plain text in captions, and set weights in prompts
        prompts = [without_weights(prompt) for prompt in prompts]
    return [prompt.replace("|", ",") for prompt in prompts[:MOST]]
