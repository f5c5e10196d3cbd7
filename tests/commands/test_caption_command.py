"""gralora caption: BLIP, Florence-2 and taggers, as tiny models made here; what is kept and refused."""

import os
import subprocess
import sys

import pytest
import torch
from helpers import GRALORA, ROOT
from PIL import Image

from gralora_diffusion.cli.main import main
from gralora_diffusion.data.captioner import Captioner, load_captioner
from gralora_diffusion.data.image_folder import find_images
from gralora_diffusion.data.tagger import Tag, chosen, load_tagger, pixels_of
from gralora_diffusion.data.write_captions import MAX_CHARACTERS, jobs_of, one_line, write_captions
from gralora_diffusion.options import ConfigError

SMALL = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """A folder with a tiny random BLIP."""
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    folder = tmp_path_factory.mktemp("blip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "photo", "of", "dog", "cat", "red"]
    tokens = dict(bos_token_id=5, eos_token_id=3, sep_token_id=3, pad_token_id=0, max_position_embeddings=64)
    text = dict(vocab_size=len(words), projection_dim=8, encoder_hidden_size=16, **tokens, **SMALL)
    vision = dict(image_size=32, patch_size=16, projection_dim=8, **SMALL)
    torch.manual_seed(0)
    own = dict(text_config=text, vision_config=vision, projection_dim=8, image_text_hidden_size=8)
    BlipForConditionalGeneration(BlipConfig(**own)).save_pretrained(folder)
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    BlipProcessor(BlipImageProcessor(size=dict(height=32, width=32)), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def florence(tmp_path_factory):
    """A folder with a tiny random Florence-2."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
        PreTrainedTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("florence")
    special = dict(bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    words = [
        *special.values(),
        "<image>",
        "Describe",
        "in",
        "detail",
        "what",
        "is",
        "shown",
        "the",
        "image",
        ".",
    ]
    vision = dict(depths=[1, 1], embed_dim=[8, 16], patch_size=[7, 3], patch_stride=[4, 2])
    vision |= dict(patch_padding=[3, 1], patch_prenorm=[False, True], num_heads=[2, 2], num_groups=[2, 2])
    vision |= dict(window_size=4, projection_dim=16, max_temporal_embeddings=4, max_position_embeddings=10)
    text = dict(model_type="bart", vocab_size=len(words), d_model=16, max_position_embeddings=64)
    for part in ("encoder", "decoder"):
        text |= {f"{part}_layers": 1, f"{part}_attention_heads": 2, f"{part}_ffn_dim": 16}
    text |= dict(bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2)
    torch.manual_seed(0)
    config = Florence2Config(text_config=text, vision_config=vision, image_token_id=4)
    model = Florence2ForConditionalGeneration(config)
    model.generation_config.suppress_tokens = [0, 1, 3, 4]
    model.generation_config.min_new_tokens = 3  # so that it gives words
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens=dict(image_token="<image>"), **special
    )
    images = CLIPImageProcessor(size=dict(height=32, width=32), do_center_crop=False)
    images.image_seq_length = 17  # the cells of a 32 x 32 image, and their mean
    Florence2Processor(images, fast).save_pretrained(folder)
    return folder


TAGS = ["rating_safe", "long_hair", "^_^", "hatsune_miku"]


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    """A folder with a model of which the tags after the first are how much blue, green and red there is."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    folder = tmp_path_factory.mktemp("tagger")
    weights = np.zeros((3, 4), np.float32)
    weights[[0, 1, 2], [1, 2, 3]] = 1 / 255
    nodes = [
        helper.make_node("ReduceMean", ["image", "sides"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["tags"]),
    ]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 16, 16, 3])]
    outputs = [helper.make_tensor_value_info("tags", TensorProto.FLOAT, ["n", 4])]
    constants = [
        numpy_helper.from_array(weights, "weights"),
        numpy_helper.from_array(np.array([1, 2], np.int64), "sides"),
    ]
    graph = helper.make_graph(nodes, "tagger", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(folder / "model.onnx"))
    lines = [f"{n},{name},{category},9" for n, (name, category) in enumerate(zip(TAGS, "9004", strict=True))]
    (folder / "selected_tags.csv").write_text("\n".join(["tag_id,name,category,count", *lines]) + "\n")
    return folder


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, color in (("a.png", "blue"), ("b.jpg", "red"), ("c.png", "yellow")):
        Image.new("RGB", (40, 40), color).save(folder / name)
    return folder


def captions(folder):
    return {path.name: path.read_text() for path in sorted(folder.rglob("*.txt"))}


def test_a_tagger_sees_bgr_and_writes_tags_over_their_thresholds(photos, tagger, capsys):
    main(["caption", "photos", "--model", str(tagger), "--prefix", "sks"])
    assert captions(photos) == {
        "a.txt": "sks, long hair\n",
        "b.txt": "sks, hatsune miku\n",
        "c.txt": "sks, hatsune miku, ^_^\n",
    }
    printed = capsys.readouterr()
    assert "a.png: sks, long hair" in printed.out
    assert "3 captions by tagger" in printed.out
    main(["caption", "photos", "--model", str(tagger), "--threshold", "0.9", "--overwrite"])
    assert captions(photos)["a.txt"] == "long hair\n"
    assert [image.caption for image in find_images(photos, None)][:2] == ["long hair", "hatsune miku"]


def test_onnxruntime_records_nothing_of_this_machine(photos, tagger, tmp_path):
    """Its telemetry writes a device id and events to the cache folder, which it sends to its makers."""
    env = os.environ | dict(XDG_CACHE_HOME=str(tmp_path / "home"), HOME=str(tmp_path), PYTHONPATH=str(ROOT))
    env.pop("ORT_DISABLE_TELEMETRY", None)
    command = [*GRALORA, "caption", "photos", "--model", str(tagger)]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert captions(photos)
    assert not [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name]


def test_tags_are_in_order_of_their_probability_and_faces_keep_their_underscores():
    tags = [
        Tag("long_hair", "0"),
        Tag("^_^", "0"),
        Tag("x_x", "0"),
        Tag("miku_(vocal)", "4"),
        Tag("safe", "9"),
    ]
    found = chosen(tags, [0.4, 0.9, 0.3, 0.86, 1.0], {"0": 0.35, "4": 0.85})
    assert found == ["miku (vocal)", "^_^", "long hair"]


def test_the_image_is_on_a_white_square():
    pixels = pixels_of(Image.new("RGB", (40, 20), (10, 20, 30)), 40)
    assert pixels.shape == (1, 40, 40, 3)
    assert (pixels[0, 10:30] == [30, 20, 10]).all()
    assert (pixels[0, :10] == 255).all()
    assert (pixels[0, 30:] == 255).all()


@pytest.mark.parametrize("kind", ["blip", "florence"])
def test_a_model_of_transformers_writes_captions(kind, photos, request, capsys):
    folder = request.getfixturevalue(kind)
    main(["caption", "photos", "--model", str(folder), "--prefix", "a photo of sks", "--max_tokens", "5"])
    found = captions(photos)
    assert found.keys() == {"a.txt", "b.txt", "c.txt"}
    for text in found.values():
        assert text.startswith("a photo of sks, ")
        assert 1 <= len(text.removeprefix("a photo of sks, ").split()) <= 6
        assert "<" not in text, "special tokens"
    assert "Loading weights" not in capsys.readouterr().err


def test_a_caption_begins_with_the_prompt_of_blip_and_is_the_same_again(blip):
    image = Image.new("RGB", (40, 40), "red")
    model = load_captioner(str(blip), "a photo of", 6)
    assert "a photo of" in model.of(image)
    assert model.of(image) == model.of(image)


def test_captions_of_any_form_are_kept(photos, tagger, capsys):
    (photos / "a.json").write_text('{"caption": "mine"}')
    (photos / "b.txt").write_text("  \n")
    (photos / "metadata.jsonl").write_text('{"file_name": "c.png", "text": "mine too"}\n')
    main(["caption", "photos", "--model", str(tagger)])
    assert captions(photos) == {"b.txt": "hatsune miku\n"}
    assert "1 caption by tagger" in capsys.readouterr().out
    (photos / "b.txt").rename(photos / "b.caption")
    main(["caption", "photos", "--model", str(tagger)])
    assert captions(photos) == {}
    main(["caption", "photos", "--model", str(tagger), "--overwrite"])
    assert captions(photos).keys() == {"a.txt", "b.txt", "c.txt"}


def test_masks_get_no_captions_and_numbered_folders_are_read(photos, tagger):
    (photos / "2_sks").mkdir()
    for path in list(photos.glob("*.*")):
        path.rename(photos / "2_sks" / path.name)
    Image.new("L", (40, 40), 255).save(photos / "2_sks" / "a-masklabel.png")
    main(["caption", "photos", "--model", str(tagger)])
    assert captions(photos).keys() == {"a.txt", "b.txt", "c.txt"}


def test_what_a_model_says_becomes_one_short_line(photos):
    said = "a\x1b[31m dog\n\u202eon\ta mat\0 " + "very " * 1000
    written = write_captions(jobs_of(photos), Captioner("x", lambda image: said), "", False)
    for text in written.captions.values():
        assert text.startswith("a [31m dog on a mat very")
        assert text.isprintable()
        assert len(text) <= MAX_CHARACTERS
        assert text.endswith("very")
    assert one_line(" \n\x07") == ""


def sentence(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([*arguments])
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_images_without_a_caption_are_named_and_the_others_are_written(photos, tagger, capsys):
    (photos / "bad.png").write_bytes(b"nothing")
    Image.new("RGB", (40, 40)).save(photos / "dark.png")
    found = sentence(capsys, "caption", "photos", "--model", str(tagger))
    assert "2 images of photos got no caption: bad.png (not an image, despite its name)" in found
    assert "dark.png (the model gives an empty caption)" in found
    assert captions(photos).keys() == {"a.txt", "b.txt", "c.txt"}


def test_mistakes_are_one_sentence(photos, tagger, blip, tmp_path, capsys):
    def words(*options):
        return sentence(capsys, "caption", *options)

    assert "--model" in words("photos")
    assert "nowhere is not a folder" in words("nowhere", "--model", str(tagger))
    (tmp_path / "empty").mkdir()
    assert "empty holds neither config.json nor model.onnx" in words("photos", "--model", "empty")
    (tmp_path / "empty" / "config.json").write_text(
        '{"model_type": "bert", "auto_map": {"AutoModel": "x.Y"}}'
    )
    assert "is of the kind 'bert'; it must be one of blip, florence2" in words("photos", "--model", "empty")
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "blip"}')
    assert "--model empty cannot be loaded" in words("photos", "--model", "empty")
    assert "--threshold is an option of a tagger" in words(
        "photos", "--model", str(blip), "--threshold", "0.5"
    )
    assert "--prompt is an option of a captioning model" in words(
        "photos", "--model", str(tagger), "--prompt", "x"
    )
    assert "--threshold is 3.0; it must be from 0 to 1" in words("photos", "--model", "x", "--threshold", "3")
    assert "--max_tokens is 0; it must be from 1" in words("photos", "--model", "x", "--max_tokens", "0")
    Image.new("RGB", (40, 40)).save(photos / "a.bmp")
    assert "a.bmp and a.png of photos would share the caption a.txt" in words("photos", "--model", str(blip))
    assert captions(photos) == {}


def test_a_model_with_missing_weights_is_refused(blip, tmp_path):
    from safetensors.torch import load_file, save_file

    for path in blip.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(blip / "model.safetensors")
    del tensors[max(name for name in tensors if "vision" in name)]
    save_file(tensors, tmp_path / "model.safetensors", dict(format="pt"))
    with pytest.raises(ConfigError, match="1 tensor missing or of another shape, first vision"):
        load_captioner(str(tmp_path))


def test_damaged_taggers_are_refused(tagger, tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    (tmp_path / "selected_tags.csv").write_bytes((tagger / "selected_tags.csv").read_bytes())
    with pytest.raises(ConfigError, match=r"model\.onnx cannot be used as an ONNX model"):
        load_tagger(tmp_path, None, None)
    (tmp_path / "model.onnx").write_bytes((tagger / "model.onnx").read_bytes())
    (tmp_path / "selected_tags.csv").write_text("tag_id,name,category\n0,one,0\n")
    with pytest.raises(ConfigError, match=r"gives 4 values for 1 tag of selected_tags\.csv"):
        load_tagger(tmp_path, None, None).of(Image.new("RGB", (8, 8)))
    (tmp_path / "selected_tags.csv").write_text("word\none\n")
    with pytest.raises(ConfigError, match="is not a list of tags with the columns name and category"):
        load_tagger(tmp_path, None, None)
    (tmp_path / "selected_tags.csv").write_bytes((tagger / "selected_tags.csv").read_bytes())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        ConfigError, match=r"onnxruntime is missing: pip install 'gralora-diffusion\[captions\]'"
    ):
        load_tagger(tmp_path, None, None)


def test_a_list_of_captions_in_upper_case_is_not_overlooked(photos):
    (photos / "METADATA.csv").write_text("file_name,text\n")
    if (photos / "metadata.csv").exists():
        pytest.skip("names here have no case")
    with pytest.raises(
        ConfigError, match=r"METADATA.csv cannot be used: captions are read from metadata.csv"
    ):
        jobs_of(photos)
