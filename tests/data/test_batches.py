"""Batches: latents with their captions and ids, buckets, prior preservation, nothing kept in memory."""

import collections
import dataclasses
import gc
import json
import math
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from helpers import SCRIPTS
from PIL import Image, ImageChops, ImageDraw
from safetensors.torch import load_file

from gralora_diffusion import AdapterConfig, TrainConfig, load_sdxl
from gralora_diffusion.command_line import parse
from gralora_diffusion.data.batches import examples_at, plan_batches
from gralora_diffusion.data.cache import Cache
from gralora_diffusion.data.captions import ORDERS, orders
from gralora_diffusion.data.class_images import class_images
from gralora_diffusion.data.dataset import EXAMPLE
from gralora_diffusion.data.encode import check_captions, encode_captions
from gralora_diffusion.data.image_folder import find_images
from gralora_diffusion.data.images import bucket_of, crops_of, to_pixels
from gralora_diffusion.options import ConfigError, TrainingError
from gralora_diffusion.sdxl.base import encode_prompts
from gralora_diffusion.sdxl.prompt_chunks import PromptRules
from gralora_diffusion.sdxl.sampling import sample
from gralora_diffusion.training.train import train

BASE = TrainConfig(train_batch_size=2, resolution=64)
SIZES = [(64, 64), (96, 64), (64, 96), (100, 100), (128, 64), (70, 50), (64, 128), (90, 60)]  # width, height


@pytest.fixture(scope="module")
def pipeline():
    return load_sdxl()


def folder_of(path, sizes=SIZES, name="p"):
    """Images that can be told apart, also from those of a longer name, each with its own caption."""
    path.mkdir(exist_ok=True)
    for i, size in enumerate(sizes):
        image = Image.effect_mandelbrot(size, (-2 + i / 9, -1.5, 1, 1.5), 60).convert("RGB")
        ImageDraw.Draw(image).rectangle((5, 5, 20, 20), fill=(25 * i, 255 - 20 * i, 89 + len(name)))
        image.save(path / f"{name}{i}.png")
        (path / f"{name}{i}.txt").write_text(f"image {i}, red, blue, green, large")
    return path


def series_of(images, pipeline, cache, config=BASE, of_class=(), **options):
    config = dataclasses.replace(config, **options)
    return plan_batches(images, list(of_class), pipeline.vae, config, Cache(cache), Accelerator(cpu=True))


def prior(folder, **options):
    return dataclasses.replace(
        BASE,
        with_prior_preservation=True,
        class_data_dir=str(folder),
        class_prompt="a photo of a robot",
        **options,
    )


def test_latents_of_a_vae_that_works_in_tiles_are_entries_of_their_own(pipeline, tmp_path):
    images = find_images(EXAMPLE, "x")[:1]
    whole = series_of(images, pipeline, tmp_path).instance[0][0].keys
    pipeline.vae.use_tiling = True
    tiled = series_of(images, pipeline, tmp_path).instance[0][0].keys
    pipeline.vae.use_tiling = False
    assert tiled != whole
    assert series_of(images, pipeline, tmp_path).instance[0][0].keys == whole


def test_latents_are_the_vaes_own(pipeline, tmp_path):
    images = find_images(EXAMPLE, "x")[:1]
    [record] = examples_at(series_of(images, pipeline, tmp_path, center_crop=True), [0])
    [(pixels, ids)] = crops_of(images[0].open(), (64, 64), True, False, "lanczos", 0)
    with torch.no_grad():
        posterior = pipeline.vae.encode(pixels[None]).latent_dist
    torch.testing.assert_close(record.moments[0], posterior.mean[0] * pipeline.vae.config.scaling_factor)
    torch.testing.assert_close(record.moments[1], posterior.std[0] * pipeline.vae.config.scaling_factor)
    assert torch.equal(record.time_ids, ids)
    assert (record.weight, record.position) == (1.0, 0)


def test_trap_7_latents_stay_with_their_captions_sizes_and_crops(pipeline, tmp_path):
    """diffusers' advanced script mismatches cached latents and captions; here each is decoded."""
    images = {p.path: p for p in find_images(folder_of(tmp_path / "p"), None)}
    config = dataclasses.replace(
        BASE, use_aspect_ratio_buckets=True, random_flip=True, with_prior_preservation=False
    )
    series = series_of(list(images.values())[::-1], pipeline, tmp_path / "cache", config)
    for record in examples_at(series, range(64)):
        image, opened = images[record.path], images[record.path].open()
        assert record.caption == image.caption
        height, width, top, left, *shape = map(int, record.time_ids)
        assert (height, width) == (opened.height, opened.width)
        assert (
            tuple(shape)
            == bucket_of((height, width), 64, True)
            == (8 * record.moments.shape[2], 8 * record.moments.shape[3])
        )
        scale = max(shape[0] / height, shape[1] / width)
        whole = opened.resize(
            (max(shape[1], round(width * scale)), max(shape[0], round(height * scale))),
            Image.Resampling.LANCZOS,
        )
        candidates = [
            w.crop((left, top, left + shape[1], top + shape[0]))
            for w in (whole, whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        ]
        with torch.no_grad():
            moments = [
                pipeline.vae.encode(to_pixels(c)[None]).latent_dist.mean[0]
                * pipeline.vae.config.scaling_factor
                for c in candidates
            ]
        assert min((record.moments[0] - m).abs().max() for m in moments) < 1e-4


def test_trap_4_class_images_have_size_and_crop_ids_of_their_own(pipeline, tmp_path):
    """train_dreambooth_lora_sdxl.py trains them with the ids of the instance image beside them."""
    mine = find_images(folder_of(tmp_path / "p", [(200, 100)]), None)
    theirs = find_images(folder_of(tmp_path / "c", [(64, 90), (80, 64)], "c"), None)
    series = series_of(
        mine,
        pipeline,
        tmp_path / "cache",
        prior(tmp_path / "c", prior_loss_weight=0.3, center_crop=True),
        theirs,
    )
    records = examples_at(series, range(8))
    assert [r.weight for r in records] == [1.0] * 8 + [0.3] * 8
    assert {tuple(r.time_ids.tolist()) for r in records[:8]} == {(100, 200, 0, 32, 64, 64)}
    assert {tuple(r.time_ids.tolist()) for r in records[8:]} == {
        (90, 64, 13, 0, 64, 64),
        (64, 80, 0, 8, 64, 64),
    }
    assert {r.caption for r in records[8:]} == {
        p.caption for p in theirs
    }  # captions beside class images hold too
    assert len({r.position for r in records}) == 16  # each with noise of its own


def test_trap_8_flips_and_crops_are_not_frozen_and_nothing_stays_in_memory(pipeline, tmp_path):
    """diffusers' script flips and crops once at the start, and keeps all repeats as fp32 pixels."""
    held = {}
    for count in (2, 4):
        images = find_images(folder_of(tmp_path / str(count), [(160, 64)] * count), None)
        gc.collect()
        before = tensor_bytes()
        series = series_of(images, pipeline, tmp_path / "cache", random_flip=True, repeats=10)
        gc.collect()
        held[count] = tensor_bytes() - before
    assert held == {2: 0, 4: 0}
    seen = collections.defaultdict(set)
    for record in examples_at(series, range(400)):
        seen[record.path].add((record.time_ids[3].item(), record.moments.sum().item()))
    assert all(len(places) == 8 for places in seen.values())  # four places, each in the mirror too


def tensor_bytes() -> int:
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in gc.get_objects()
        if type(t) in (torch.Tensor, torch.nn.Parameter)
    }
    return sum(storages.values())


def test_the_series_is_a_function_of_seed_and_position(pipeline, tmp_path):
    images = find_images(folder_of(tmp_path / "p"), None)

    def names(positions, **options):
        return [
            (r.path.name, r.caption, r.time_ids.tolist())
            for r in examples_at(series_of(images, pipeline, tmp_path / "c", **options), positions)
        ]

    for options in (
        {},
        dict(use_aspect_ratio_buckets=True, caption_dropout=0.3, shuffle_captions=True, random_flip=True),
    ):
        whole = names(range(40), **options)
        assert whole[13:22] == names(range(13, 22), **options)
        assert whole == names(range(40), **options)
        assert whole != names(range(40), seed=1, **options)
    for start in range(0, 40, 8):  # every image once a pass
        assert len({name for name, *_ in names(range(start, start + 8))}) == 8
    assert collections.Counter(n for n, *_ in names(range(24), repeats=3)) == {
        f"p{i}.png": 3 for i in range(8)
    }


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_batch_is_of_one_bucket_and_every_image_comes_equally_often(pipeline, tmp_path, batch):
    images = find_images(folder_of(tmp_path / "p"), None)
    series = series_of(
        images, pipeline, tmp_path / "c", use_aspect_ratio_buckets=True, train_batch_size=batch
    )
    assert sorted(map(len, series.instance)) == [1, 1, 1, 1, 2, 2]
    counts = collections.Counter()
    for index in range(len(images)):
        records = examples_at(series, range(index * batch, (index + 1) * batch))
        assert len({r.moments.shape for r in records}) == 1
        counts.update(r.path.name for r in records)
    assert counts == {f"p{i}.png": batch for i in range(8)}


def test_two_processes_see_what_one_sees_with_twice_the_batch(pipeline, tmp_path):
    """Process r of 2 takes the batches 2 * micro + r of half the size; its series has the same group."""
    images = find_images(folder_of(tmp_path / "p"), None)
    one = series_of(images, pipeline, tmp_path / "c", use_aspect_ratio_buckets=True, train_batch_size=4)
    two = dataclasses.replace(
        series_of(images, pipeline, tmp_path / "c", use_aspect_ratio_buckets=True, train_batch_size=2),
        group=4,
    )
    for micro in range(20):
        whole = examples_at(one, range(micro * 4, micro * 4 + 4))
        halves = [examples_at(two, range(index * 2, index * 2 + 2)) for index in (2 * micro, 2 * micro + 1)]
        assert [(r.path, r.position, r.time_ids.tolist()) for r in whole] == [
            (r.path, r.position, r.time_ids.tolist()) for h in halves for r in h
        ]


def test_with_buckets_class_images_have_the_shape_of_the_batch(pipeline, tmp_path):
    mine = find_images(folder_of(tmp_path / "p"), None)
    theirs = find_images(folder_of(tmp_path / "c", [(64, 64), (65, 64), (128, 64)], "c"), None)
    series = series_of(
        mine, pipeline, tmp_path / "cache", prior(tmp_path / "c", use_aspect_ratio_buckets=True), theirs
    )
    by_shape = collections.defaultdict(set)
    for index in range(40):
        records = examples_at(series, range(index * 2, index * 2 + 2))
        assert len({r.moments.shape for r in records}) == 1
        by_shape[tuple(records[0].time_ids[4:].int().tolist())].update(r.path.name for r in records[2:])
    assert by_shape[64, 64] == {"c0.png", "c1.png"}
    assert by_shape[40, 88] == {"c2.png"}
    assert by_shape[88, 40] == {"c0.png", "c1.png", "c2.png"}  # none is tall: cuts of all


def test_captions_are_dropped_as_often_as_asked_and_class_captions_never(pipeline, tmp_path):
    mine = find_images(folder_of(tmp_path / "p", SIZES[:2]), None)
    series = series_of(
        mine,
        pipeline,
        tmp_path / "cache",
        prior(tmp_path, caption_dropout=0.25),
        find_images(EXAMPLE, "a robot"),
    )
    records = examples_at(series, range(1000))
    dropped = sum(r.caption == "" for r in records[:1000]) / 1000
    assert abs(dropped - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 1000)
    assert all(r.caption for r in records[1000:])
    assert {r.caption for r in records} == set(series.captions())


def test_tags_are_shuffled_in_a_bounded_number_of_orders(pipeline, tmp_path):
    assert orders("a dog, red, blue", False, 0) == ["a dog, red, blue"]
    assert orders("a dog", True, 0) == ["a dog"]
    assert orders("a dog, red", True, 1) == ["a dog, red"]
    forms = orders("sks, " + ", ".join("abcdefgh"), True, 1)
    assert len(set(forms)) == ORDERS
    assert all(f.startswith("sks, ") and sorted(f.split(", ")) == sorted(["sks", *"abcdefgh"]) for f in forms)
    series = series_of(
        find_images(folder_of(tmp_path / "p"), None),
        pipeline,
        tmp_path / "c",
        shuffle_captions=True,
        keep_tokens=1,
    )
    seen = {r.caption for r in examples_at(series, range(400))}
    assert seen <= set(series.captions())
    assert len(seen) > 0.8 * len(series.captions()) > 8 * 4
    assert all(caption.startswith("image ") for caption in seen)


def test_prompt_embeddings_are_the_encoders_own_and_are_read_from_disk(pipeline, tmp_path, monkeypatch):
    cache, accelerator, captions = Cache(tmp_path), Accelerator(cpu=True), ["", "a dog", "a red cat"]
    encode = encode_captions(captions, pipeline, cache, accelerator)
    with torch.no_grad():
        single = [encode_prompts(pipeline, [caption]) for caption in captions]
        expected = [torch.cat(parts) for parts in zip(*single, strict=True)]
    for got, wanted in zip(encode(captions), expected, strict=True):
        assert torch.equal(got, wanted)
    assert not encode([""])[0].any()  # zeros, which the pipeline guides away from
    assert encode(["a dog"])[0].any()
    monkeypatch.setattr("gralora_diffusion.data.encode.encode_prompts", None)
    again = encode_captions(captions, pipeline, cache, accelerator)
    assert torch.equal(again(captions)[0], expected[0])
    with pytest.raises(TypeError):  # another caption is not there
        encode_captions(["a cow"], pipeline, cache, accelerator)


def test_long_captions_are_said(pipeline, tmp_path, capsys):
    (image, *_), rules = find_images(EXAMPLE, None), PromptRules()
    short, long, cut = (dataclasses.replace(image, caption="dog " * n) for n in (30, 90, 97))
    check_captions([short, long], pipeline, rules)
    assert not capsys.readouterr().err
    check_captions([short, long, cut], pipeline, rules)
    said = capsys.readouterr().err
    assert "1 caption truncated to the 90 tokens that are read (--max_token_length): 00.png loses 7" in said
    check_captions([short, long, cut], pipeline, PromptRules(chunks=1))
    assert "2 captions truncated to the 30 tokens" in capsys.readouterr().err


def test_weights_in_captions_are_checked_where_they_count(pipeline):
    image = dataclasses.replace(find_images(EXAMPLE, None)[0], caption="a (dog:99)")
    check_captions([image], pipeline, PromptRules())
    with pytest.raises(ConfigError, match=r"the caption of 00.png: the prompt gives 'dog' the weight 99"):
        check_captions([image], pipeline, PromptRules(weighted=True))


def test_later_runs_encode_only_what_is_new(pipeline, tmp_path, monkeypatch):
    encoded = []
    real = pipeline.vae.encode
    monkeypatch.setattr(pipeline.vae, "encode", lambda x: encoded.append(x.shape[0]) or real(x))

    def count(**options):
        encoded.clear()
        series = series_of(find_images(tmp_path / "p", None), pipeline, tmp_path / "cache", **options)
        return len(encoded), series

    folder_of(tmp_path / "p", SIZES[:4])
    first, series = count(center_crop=True)
    before = examples_at(series, range(8))
    assert first == 4
    again, series = count(center_crop=True, seed=5, dataloader_num_workers=2)
    assert again == 0
    _, series = count(center_crop=True)
    assert all(
        torch.equal(a.moments, b.moments) for a, b in zip(before, examples_at(series, range(8)), strict=True)
    )
    (tmp_path / "p" / "p0.png").rename(tmp_path / "p" / "q.png")  # content counts, not names
    (tmp_path / "p" / "p0.txt").rename(tmp_path / "p" / "q.txt")
    assert count(center_crop=True)[0] == 0
    assert count(center_crop=True, random_flip=True)[0] == 4  # only the mirrored ones
    assert count(center_crop=True, resolution=72)[0] == 4
    assert count(center_crop=True, image_interpolation_mode="bicubic")[0] == 4
    [*entries] = (tmp_path / "cache" / "latents").rglob("*.safetensors")
    entries[0].write_bytes(entries[0].read_bytes()[:-1] + b"\1")
    assert (
        sum(
            count(center_crop=True, **o)[0]
            for o in (
                {},
                dict(random_flip=True),
                dict(resolution=72),
                dict(image_interpolation_mode="bicubic"),
            )
        )
        == 1
    )
    pipeline.vae.encoder.conv_in.bias.data[0] += 1e-3  # another VAE
    try:
        assert count(center_crop=True)[0] == 4
    finally:
        pipeline.vae.encoder.conv_in.bias.data[0] -= 1e-3


def test_latents_that_are_not_finite_name_the_image(tmp_path):
    pipeline = load_sdxl()
    pipeline.vae.encoder.conv_in.weight.data.mul_(1e38)
    with pytest.raises(ConfigError, match=r"not finite for 00\.png"):
        series_of(find_images(EXAMPLE, "x"), pipeline, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_image_that_goes_while_it_is_needed_is_named_and_later_it_is_not_needed(pipeline, tmp_path):
    images = find_images(folder_of(tmp_path / "p", SIZES[:2]), None)
    (tmp_path / "p" / "p1.png").write_bytes(b"other bytes")
    with pytest.raises(ConfigError, match=r"p1\.png could be used when the run started.*has changed"):
        series_of(images, pipeline, tmp_path / "cache")
    (tmp_path / "p" / "p1.png").unlink()
    with pytest.raises(ConfigError, match=r"p1\.png could be used when the run started.*No such file"):
        series_of(images, pipeline, tmp_path / "cache")
    series = series_of(images[:1], pipeline, tmp_path / "cache")
    shutil.rmtree(tmp_path / "p")
    assert len(examples_at(series, range(4))) == 4
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(TrainingError, match="removed or damaged during the run"):
        examples_at(series, range(4))


def test_processes_that_do_not_share_a_folder_are_told(tmp_path, pipeline):
    """The first of two machines, and the other's share is not where it should be."""
    lonely = SimpleNamespace(
        process_index=0, num_processes=2, is_local_main_process=True, wait_for_everyone=lambda: None
    )
    images = find_images(folder_of(tmp_path / "p", SIZES[:2]), None)
    with pytest.raises(ConfigError, match="a folder that all processes share"):
        plan_batches(images, [], pipeline.vae, BASE, Cache(tmp_path / "cache"), lonely)
    with pytest.raises(ConfigError, match="a folder that all processes share"):
        encode_captions(["a dog", "a cat"], pipeline, Cache(tmp_path / "cache"), lonely)


def test_class_images_are_drawn_where_they_are_missing_and_go_on_where_they_were(tmp_path, pipeline, capsys):
    folder, accelerator = tmp_path / "class", Accelerator(cpu=True)
    config = prior(folder, num_class_images=5, sample_batch_size=2, num_inference_steps=2, guidance_scale=3.0)
    mine = find_images(folder_of(tmp_path / "p", SIZES[:2]), None)
    base = dict(path=None, dtype=torch.float32)

    def draw(config=config):
        return class_images(config, mine, base, accelerator)

    first = draw()
    assert len(first) == 5
    assert {p.caption for p in first} == {"a photo of a robot"}
    assert {p.size for p in first} == {(64, 64)}
    content = {p.path.name: p.path.read_bytes() for p in first}
    assert len(set(content.values())) == 5
    assert "generating 5 class images" in capsys.readouterr().out
    for name in sorted(content)[1:3]:  # a broken run: two are not there
        (folder / name).unlink()
    assert {p.path.name: p.path.read_bytes() for p in draw()} == content
    assert "generating 2 class images" in capsys.readouterr().out
    assert [p.path for p in draw()] == [p.path for p in first]
    assert "generating" not in capsys.readouterr().out
    folder_of(folder, [(64, 64)] * 2, "mine")  # the user's own count first
    assert [p.path.name for p in draw()] == ["mine0.png", "mine1.png", *sorted(content)[:3]]
    other = draw(dataclasses.replace(config, class_prompt="a photo of a cat", num_class_images=3))
    assert len(other) == 3
    assert not {p.path.name for p in other} & content.keys()
    assert "5 images generated for another prompt" in capsys.readouterr().err
    [image] = sample(pipeline, ["a photo of a robot"], 7, num_inference_steps=2, guidance_scale=3.0)
    assert image.size == (64, 64)


def test_class_images_have_the_shapes_of_the_instance_images(tmp_path):
    mine = find_images(folder_of(tmp_path / "p", [(64, 64), (128, 64)]), None)
    config = prior(
        tmp_path / "class",
        num_class_images=4,
        num_inference_steps=1,
        guidance_scale=1.0,
        use_aspect_ratio_buckets=True,
    )
    found = class_images(config, mine, dict(path=None, dtype=torch.float32), Accelerator(cpu=True))
    assert [p.size for p in found] == [(64, 64), (40, 88)] * 2


def test_a_bad_class_image_is_named_before_anything_is_drawn(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match=r"bad\.png"):
        class_images(prior(tmp_path), [], dict(path="nowhere", dtype=torch.float32), Accelerator(cpu=True))
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        class_images(
            prior(tmp_path / "c", prior_generation_precision="fp16"),
            [],
            dict(dtype=torch.float32),
            Accelerator(cpu=True),
        )


def quick(run, **options):
    config = TrainConfig(
        adapter=AdapterConfig(rank=16, k=2),
        max_train_steps=3,
        train_batch_size=2,
        output_dir=str(run),
        skip_final_inference=True,
    )
    train(dataclasses.replace(config, num_inference_steps=2, guidance_scale=2.0, **options))
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    return load_file(run / "adapter.safetensors"), losses


def test_prior_preservation_is_dreambooths_loss(tmp_path):
    """The instances' mean plus the weighted mean of the class: linear in the weight."""
    folder_of(tmp_path / "class", SIZES[:3])
    common = dict(
        max_train_steps=1,
        with_prior_preservation=True,
        class_data_dir=str(tmp_path / "class"),
        class_prompt="x",
        num_class_images=3,
    )
    weighted = [common | dict(prior_loss_weight=w) for w in (0.0, 0.5, 1.0)]
    losses = []
    for n, options in enumerate([dict(max_train_steps=1), *weighted]):
        losses.append(quick(tmp_path / str(n), **options)[1][0])
    plain, zero, half, whole = losses
    assert zero == pytest.approx(plain, rel=1e-5)
    assert whole - zero == pytest.approx(2 * (half - zero), rel=1e-4)
    assert whole - zero > 0.05


@pytest.mark.parametrize("text", [False, True])
def test_everything_together(tmp_path, text):
    """All options of images and captions together; the same from the cache, stopped and resumed."""
    folder_of(tmp_path / "p")
    options = dict(
        instance_data_dir=str(tmp_path / "p"),
        with_prior_preservation=True,
        class_data_dir=str(tmp_path / "class"),
        class_prompt="a robot",
        num_class_images=4,
        use_aspect_ratio_buckets=True,
        random_flip=True,
        caption_dropout=0.3,
        shuffle_captions=True,
        keep_tokens=1,
        repeats=2,
        dataloader_num_workers=2,
        snr_gamma=5.0,
        train_text_encoder=text,
    )
    first = quick(tmp_path / "a", **options)
    quick(tmp_path / "b", **options | dict(max_train_steps=1))
    again = quick(tmp_path / "b", **options)
    assert first[1] == again[1]
    assert all(torch.equal(first[0][name], again[0][name]) for name in first[0])
    assert len(list((tmp_path / "class").iterdir())) == 4


def test_without_the_shared_cache_the_run_cleans_up_and_is_the_same(tmp_path, cache_folder):
    first, losses = quick(tmp_path / "a")
    entries = set(cache_folder.rglob("*"))
    second, losses_without = quick(tmp_path / "b", cache_latents=False, random_flip=False)
    assert losses == losses_without
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not (tmp_path / "b" / "cache").exists()
    assert set(cache_folder.rglob("*")) == entries


@pytest.mark.slow
def test_two_processes_equal_one_with_everything(tmp_path):
    """With buckets, prior preservation, dropped captions, accumulation; both processes make the cache."""
    script = SCRIPTS / "train_sdxl.py"
    folder_of(tmp_path / "p")
    common = [
        "--instance_data_dir",
        "p",
        "--use_aspect_ratio_buckets",
        "--random_flip",
        "--caption_dropout",
        0.2,
        "--repeats",
        2,
        "--rank",
        16,
    ]
    common += [
        "--with_prior_preservation",
        "--class_prompt",
        "a robot",
        "--num_class_images",
        5,
        "--num_inference_steps",
        2,
        "--guidance_scale",
        3,
        "--prior_loss_weight",
        0.5,
    ]
    common += [
        "--max_train_steps",
        2,
        "--gradient_accumulation_steps",
        2,
        "--skip_final_inference",
        "--adam_epsilon",
        1e-3,
    ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    for name, start, batch in (
        ("two", torchrun, 2),
        ("one", [sys.executable], 4),
    ):  # the second uses the first's class images
        own = [
            "--class_data_dir",
            "class",
            "--latent_cache_dir",
            f"cache-{name}",
            "--output_dir",
            name,
            "--train_batch_size",
            batch,
        ]
        command = [str(word) for word in [*start, script, *common, *own]]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ | {"ACCELERATE_USE_CPU": "true"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        assert ("generating 5 class images" in done.stdout) == (name == "two")
    first, second = (load_file(tmp_path / name / "adapter.safetensors") for name in ("one", "two"))
    assert max((first[k] - second[k]).abs().max() for k in first) < 1e-6
    config = parse("", [str(word) for word in [*common, "--class_data_dir", tmp_path / "alone"]])
    alone = class_images(
        config,
        find_images(tmp_path / "p", None),
        dict(path=None, dtype=torch.float32),
        Accelerator(cpu=True),
    )
    assert len(alone) == 5
    for (
        image
    ) in alone:  # shares are other batches: the last bit of a float may round to the next of 256 levels
        drawn = ImageChops.difference(
            Image.open(image.path), Image.open(tmp_path / "class" / image.path.name)
        )
        assert max(high for _, high in drawn.getextrema()) <= 1
    entries = []
    for name in ("one", "two"):
        cache = tmp_path / f"cache-{name}"
        entries.append({path.relative_to(cache) for path in cache.rglob("*.*")})
    assert entries[0] == entries[1]
