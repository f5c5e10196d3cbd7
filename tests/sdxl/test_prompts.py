"""Long and weighted prompts: against ComfyUI's rule, written down here once more, and against diffusers."""

import contextlib
import time

import numpy as np
import pytest
import torch

from gralora_diffusion import load_sdxl
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.base import (
    blank_inputs,
    caption_encoder,
    embed_readings,
    encode_prompts,
    predict,
)
from gralora_diffusion.sdxl.prompt_chunks import PromptRules, read_prompt
from gralora_diffusion.sdxl.prompt_embeds import embedded
from gralora_diffusion.sdxl.prompt_weights import parse_weights, without_weights
from gralora_diffusion.sdxl.sampling import generate, sample
from gralora_diffusion.sdxl.sampling_settings import SamplingSettings

WEIGHTED = PromptRules(weighted=True, chunks=10, cut=False)
LONG = "a photo of a red heart, " * 12
ROOM = 30  # tokens of a chunk of the embedded base


@pytest.fixture(scope="module")
def pipeline():
    return load_sdxl()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a dog", [("a dog", 1)]),
        ("", []),
        ("a (dog)", [("a ", 1), ("dog", 1.1)]),
        ("a ((dog)) x", [("a ", 1), ("dog", 1.21), (" x", 1)]),
        ("a (dog:1.3)", [("a ", 1), ("dog", 1.3)]),
        ("[a dog]", [("a dog", 1 / 1.1)]),
        ("[[a] b]", [("a", 1 / 1.21), (" b", 1 / 1.1)]),
        ("((a:1.3) b:0.5)", [("a", 1.3), (" b", 0.5)]),  # a number is the weight itself, as in ComfyUI
        ("((a) b:0.5)", [("a", 0.55), (" b", 0.5)]),
        ("(a:-1)", [("a", -1)]),
        ("(a: 1.5 )", [("a", 1.5)]),
        ("(a:.5)", [("a", 0.5)]),
        ("(16:9)", [("16", 9)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(a:nan)", [("a:nan", 1.1)]),
        ("(:1.2)", [(":1.2", 1.1)]),
        ("()", []),
        (r"saber \(fate\)", [("saber (fate)", 1)]),
        (r"(saber \(fate\):1.2)", [("saber (fate)", 1.2)]),
        (r"\\(a)", [("\\(a)", 1)]),
        ("(a", [("(a", 1)]),
        ("a)", [("a)", 1)]),
        (":) (a) :(", [(":) ", 1), ("a", 1.1), (" :(", 1)]),
        ("(a [b) c]", [("a [b", 1.1), (" c]", 1)]),
        ("[a (b] c)", [("a (b", 1 / 1.1), (" c)", 1)]),
        ("(red)dish", [("red", 1.1), ("dish", 1)]),
    ],
)
def test_weights_are_parsed(text, expected):
    found = parse_weights(text)
    assert [words for words, _ in found] == [words for words, _ in expected]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected])


@pytest.mark.parametrize("text", ["(a:11)", "(a:-99)", "(" * 40 + "a" + ")" * 40, "(time 12:30)"])
def test_weights_out_of_bounds_are_refused(text):
    with pytest.raises(ConfigError, match=r"gives '.*' the weight .*; weights are from -10 to 10"):
        parse_weights(text)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 100_000,
        ")" * 100_000,
        "[(" * 50_000,
        "([" * 25_000 + ")" * 25_000 + "]" * 25_000,
        "(a:1.0" * 15_000 + ")" * 15_000,
        "(a:1.1)" * 15_000,
        "\\(" * 50_000,
        ":" * 100_000 + ")",
        "(" + "1" * 99_999 + ")",
        "(a" * 33_000 + "]" * 33_000,
    ],
)
def test_long_texts_are_parsed_in_linear_time(text):
    start = time.process_time()
    with contextlib.suppress(ConfigError):
        parse_weights(text)
    assert time.process_time() - start < 1


def test_plain_text_with_brackets_becomes_a_prompt_that_means_it():
    for text in ("saber (fate)", "[a] (b:1.2)", "a) (", "plain"):
        assert parse_weights(without_weights(text)) == [(text, 1.0)]


def chunks_by_comfyui(tokenizer, parts):
    """Rows of (token, weight): words whole up to 7 tokens, each row with start, end and padding."""
    length = tokenizer.model_max_length
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    rows = [[(start, 1.0)]]
    for text, weight in parts:
        for word in text.split():
            group = [(token, weight) for token in tokenizer(word).input_ids[1:-1]]
            large = len(group) >= 8
            while group:
                if len(group) + len(rows[-1]) <= length - 1:
                    rows[-1] += group
                    break
                if large:
                    free = length - len(rows[-1]) - 1
                    rows[-1] += group[:free]
                    group = group[free:]
                rows.append([(start, 1.0)])
    return [row + [(end, 1.0)] + [(pad, 1.0)] * (length - 1 - len(row)) for row in rows]


def encoded_by_comfyui(pipeline, parts):
    """(embeds, pooled): each row through the encoder, weights between its states and an empty row's."""
    states, pooled = [], None
    pairs = (pipeline.tokenizer, pipeline.text_encoder), (pipeline.tokenizer_2, pipeline.text_encoder_2)
    for tokenizer, encoder in pairs:
        rows = chunks_by_comfyui(tokenizer, parts)
        (empty_row,) = chunks_by_comfyui(tokenizer, [])
        outputs = []
        for row in (*rows, empty_row):
            tokens = torch.tensor([[token for token, _ in row]])
            outputs.append(encoder(tokens, output_hidden_states=True))
        empty = outputs[-1].hidden_states[-2][0]
        found = []
        for row, output in zip(rows, outputs, strict=False):
            own = output.hidden_states[-2][0].clone()
            for place, (_, weight) in enumerate(row):
                if weight != 1.0:
                    own[place] = (own[place] - empty[place]) * weight + empty[place]
            found.append(own)
        states.append(torch.cat(found))
        pooled = outputs[0]
    return torch.cat(states, -1), pooled.text_embeds[0]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a (red:1.4) heart", [("a", 1), ("red", 1.4), ("heart", 1)]),
        ("a ((red)) [heart]", [("a", 1), ("red", 1.21), ("heart", 1 / 1.1)]),
        (LONG, [(LONG, 1)]),
        (f"{LONG} (and a dog:0.3) {LONG}", [(LONG, 1), ("and a dog", 0.3), (LONG, 1)]),
        ("dog " * 29 + "xyzzyplugh end", [("dog " * 29 + "xyzzyplugh end", 1)]),  # it moves to the next chunk
        ("dog " * 27 + "q" * 80, [("dog " * 27 + "q" * 80, 1)]),  # it is divided
        ("dog " * 28 + "(xyzzyplugh:1.5) end", [("dog " * 28, 1), ("xyzzyplugh", 1.5), ("end", 1)]),
    ],
)
@torch.no_grad()
def test_comfyuis_rule(pipeline, text, parts):
    found = encode_prompts(pipeline, [text], WEIGHTED)
    embeds, pooled = encoded_by_comfyui(pipeline, parts)
    torch.testing.assert_close(found.embeds[0], embeds, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.pooled[0], pooled, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_short_prompts_are_embedded_by_diffusers_as_before(pipeline):
    for text in ("a dog", "dog " * ROOM, "", "a photo, of (brackets) [here]"):
        rules = PromptRules()
        embeds, _, pooled, _ = pipeline.encode_prompt([text], do_classifier_free_guidance=False)
        found = encode_prompts(pipeline, [text], rules)
        if text:
            assert torch.equal(found.embeds, embeds)
            assert torch.equal(found.pooled, pooled)
        plain = read_prompt(pipeline, text, rules)
        assert plain.plain
        assert (plain.chunks, plain.lost) == (1, 0)


@torch.no_grad()
def test_one_chunk_read_by_our_own_path_is_that_of_diffusers(pipeline):
    """A prompt without weights, in the path that those with weights take."""
    readings = [read_prompt(pipeline, text, PromptRules()) for text in ("a dog", "a red heart")]
    forced = [reading._replace(plain=False) for reading in readings]
    ours = embed_readings(pipeline, ["a dog", "a red heart"], forced)
    theirs = encode_prompts(pipeline, ["a dog", "a red heart"])
    assert torch.equal(ours.embeds, theirs.embeds)
    assert torch.equal(ours.pooled, theirs.pooled)


@torch.no_grad()
@pytest.mark.parametrize("clip_skip", [1, 2])
def test_clip_skip_counts_layers_from_the_last(pipeline, clip_skip):
    found = encode_prompts(pipeline, ["a dog"], PromptRules(clip_skip=clip_skip))
    states = []
    for tokenizer, encoder in (
        (pipeline.tokenizer, pipeline.text_encoder),
        (pipeline.tokenizer_2, pipeline.text_encoder_2),
    ):
        tokens = tokenizer("a dog", padding="max_length", return_tensors="pt").input_ids
        states.append(encoder(tokens, output_hidden_states=True).hidden_states[-clip_skip])
    assert torch.equal(found.embeds, torch.cat(states, -1))
    if clip_skip >= 2:  # diffusers counts from the last but one
        embeds, *_ = pipeline.encode_prompt(
            ["a dog"], do_classifier_free_guidance=False, clip_skip=clip_skip - 2
        )
        assert torch.equal(found.embeds, embeds)


def test_a_clip_skip_beyond_the_layers_is_refused(pipeline):
    layers = min(
        encoder.config.num_hidden_layers for encoder in (pipeline.text_encoder, pipeline.text_encoder_2)
    )
    for wrong in (0, layers + 1):
        with pytest.raises(
            ConfigError, match=f"--clip_skip is {wrong}; it must be from 1 to {layers}, the layers"
        ):
            encode_prompts(pipeline, ["a dog"], PromptRules(clip_skip=wrong))


@torch.no_grad()
def test_repeated_chunks_give_what_they_give_once(pipeline):
    """Why prompts of different lengths can be in one batch: attention over repeated tokens is the same."""
    noisy, timesteps, _, sizes = blank_inputs(pipeline.unet.config, 1, 8)
    noisy = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(0))
    prompts = encode_prompts(pipeline, ["a red heart on a blue background"])
    once = predict(pipeline.unet, noisy, timesteps + 500, prompts, sizes)
    six = prompts._replace(embeds=prompts.embeds.repeat(1, 6, 1))
    torch.testing.assert_close(predict(pipeline.unet, noisy, timesteps + 500, six, sizes), once)


@torch.no_grad()
def test_a_captions_embedding_does_not_depend_on_the_batch(pipeline):
    captions = ["a dog", LONG, "dog " * 2 * ROOM, ""]
    numbers = [read_prompt(pipeline, caption, PromptRules()).chunks for caption in captions]
    assert numbers == [1, 3, 2, 1]
    encode = caption_encoder(pipeline, captions, PromptRules())
    together = encode(captions)
    assert together.embeds.shape[1] == 6 * (ROOM + 2)
    for n, caption in enumerate(captions):
        alone = encode([caption])
        torch.testing.assert_close(alone.embeds[0], together.embeds[n], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alone.pooled[0], together.pooled[n], atol=1e-5, rtol=1e-5)
    own = encode_prompts(pipeline, [LONG])
    assert torch.equal(encode([LONG]).embeds, own.embeds.repeat(1, 2, 1))
    assert not together.embeds[3].any()


def test_gradients_reach_the_text_encoders_through_chunks_and_weights(pipeline):
    prompts = encode_prompts(pipeline, ["a (red:1.4) heart, " * 12, "a dog"], WEIGHTED)
    parameter = next(pipeline.text_encoder.parameters()).requires_grad_(True)
    prompts = encode_prompts(pipeline, ["a (red:1.4) heart, " * 12, "a dog"], WEIGHTED)
    prompts.embeds.square().sum().backward()
    assert parameter.grad.abs().sum() > 0
    parameter.requires_grad_(False)
    parameter.grad = None


def test_long_captions_are_cut_and_long_prompts_are_refused(pipeline):
    caption = "dog " * (3 * ROOM + 5)
    reading = read_prompt(pipeline, caption, PromptRules())
    assert (reading.chunks, reading.lost) == (3, 5)
    assert read_prompt(pipeline, caption, PromptRules(chunks=1)).plain  # as diffusers cuts it
    assert read_prompt(pipeline, caption, PromptRules(chunks=1)).lost == 2 * ROOM + 5
    with pytest.raises(ConfigError, match="the prompt has 305 tokens; the limit is 300: shorten 'dog dog"):
        read_prompt(pipeline, "dog " * (10 * ROOM + 5), WEIGHTED)
    with pytest.raises(ConfigError, match="the prompt has 100,000 characters; the limit is 65,536"):
        read_prompt(pipeline, "a" * 100_000, WEIGHTED)


@torch.no_grad()
def test_an_empty_prompt_is_no_negative_one(pipeline):
    """What is guided to is the embedding of an empty prompt, what is guided away from is zeros."""
    plain = embedded(pipeline, ["", "a dog"], "cpu", SamplingSettings())
    ours = embedded(pipeline, ["", r"a \(dog\)"], "cpu", SamplingSettings())
    for name in ("prompt_embeds", "pooled_prompt_embeds"):
        assert plain[name][0].any()
        torch.testing.assert_close(ours[name][0], plain[name][0])
    for name in ("negative_prompt_embeds", "negative_pooled_prompt_embeds"):
        assert not plain[name].any()
        assert not ours[name].any()
        assert ours[name].shape == plain[name].shape


def pixels(images):
    return np.stack([np.asarray(image, int) for image in images])


def test_images_of_weighted_and_long_prompts(pipeline):
    options = dict(num_inference_steps=4, guidance_scale=3.0)
    plain, weighted = pixels(sample(pipeline, ["a red heart", "a (red:1.5) heart"], **options))
    assert np.abs(plain - weighted).max() > 10
    (escaped,) = pixels(sample(pipeline, [r"a \(red\) heart"], **options))
    (text,) = pixels(sample(pipeline, ["a (red) heart"], **options, weighted_prompts=False))
    assert np.array_equal(escaped, text)
    (neutral,) = pixels(sample(pipeline, ["a (red:1.0) heart"], **options))
    assert np.abs(neutral - plain).max() <= 1
    # in a batch with others, long ones, and with a long negative prompt
    settings = SamplingSettings(4, 3.0, negative_prompt="dog " * 2 * ROOM)
    wanted = [("a red heart", 0), (LONG, 1), ("a dog", 2), (LONG, 3)]
    together = pixels(generate(pipeline, wanted, settings))
    for n, image in enumerate(wanted):
        alone = pixels(generate(pipeline, [image], settings))[0]
        assert np.abs(together[n] - alone).max() <= 1
    assert np.abs(together[1] - pixels(sample(pipeline, [LONG[:200]], seed=1, **options))[0]).max() > 10
