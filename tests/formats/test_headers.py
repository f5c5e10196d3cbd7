"""The header of the file for other tools, its preview, and that no file names a folder of this machine."""

import base64
import hashlib
import io
import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import adapted_pipeline
from PIL import Image, UnidentifiedImageError
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from gralora_diffusion import AdapterConfig, TrainConfig, load_sdxl
from gralora_diffusion.cli import convert
from gralora_diffusion.data.dataset import EXAMPLE
from gralora_diffusion.data.image_folder import TrainingImage
from gralora_diffusion.files import without_folders
from gralora_diffusion.formats.adapter_state import Adapter
from gralora_diffusion.formats.inspection import triggers_of
from gralora_diffusion.formats.preview import last_sample, preview_of, thumbnail_url
from gralora_diffusion.formats.read import read_adapter
from gralora_diffusion.formats.run_files import name_of, named_after
from gralora_diffusion.formats.tensor_hashes import hashes_of
from gralora_diffusion.formats.training_facts import MAX_TAGS, tag_frequency
from gralora_diffusion.formats.write import write_comfyui, write_native
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.load import EMBEDDED
from gralora_diffusion.training.hub import public_config, push, write_card
from gralora_diffusion.training.record import folders_of
from gralora_diffusion.training.train import train

WORD = "Unusual-Word-7391"  # in the path of everything that the run reads and writes
CAPTIONS = {"00": "sks dog, Sitting, red ball", "01": "sks dog,  sitting ,", "02": "sks dog, on grass"}
QUICK = dict(max_train_steps=1, train_batch_size=2, num_inference_steps=1)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a base, images with captions, and class images."""
    folder = tmp_path_factory.mktemp("home") / WORD
    shutil.copytree(EMBEDDED, folder / "my_base")
    for name in ("10_dog", "1_class"):
        (folder / name).mkdir(parents=True)
    for stem, caption in CAPTIONS.items():
        shutil.copy(EXAMPLE / f"{stem}.png", folder / "10_dog")
        (folder / "10_dog" / f"{stem}.txt").write_text(caption)
    for stem in ("03", "04"):
        shutil.copy(EXAMPLE / f"{stem}.png", folder / "1_class")
    return folder


@pytest.fixture(scope="module")
def run(home):
    return train(
        TrainConfig(
            adapter=AdapterConfig(rank=16, k=2),
            pretrained_model_name_or_path=str(home / "my_base"),
            instance_data_dir=str(home / "10_dog"),
            instance_prompt="a photo of sks dog",
            with_prior_preservation=True,
            class_data_dir=str(home / "1_class"),
            class_prompt="a dog",
            num_class_images=2,
            repeats=2,
            learning_rate=1e-3,
            snr_gamma=5.0,
            noise_offset=0.05,
            seed=7,
            output_dir=str(home / "runs" / "my_dog"),
            report_to="tensorboard",
            **QUICK | dict(max_train_steps=4, num_inference_steps=2),
        )
    )


def header_of(path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_the_header_has_the_facts_of_the_training(run):
    header = header_of(run / "my_dog.safetensors")
    wanted = {
        "ss_output_name": "my_dog",
        "ss_sd_model_name": "my_base",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_v2": "False",
        "ss_v_parameterization": "False",
        "ss_zero_terminal_snr": "False",
        "ss_learning_rate": "0.001",
        "ss_unet_lr": "0.001",
        "ss_text_encoder_lr": "None",
        "ss_num_train_images": "6",
        "ss_num_reg_images": "2",
        "ss_num_batches_per_epoch": "3",
        "ss_num_epochs": "2",
        "ss_epoch": "2",
        "ss_steps": "4",
        "ss_max_train_steps": "4",
        "ss_lr_scheduler": "constant",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "32",
        "ss_network_alpha": "32",
        "ss_mixed_precision": "no",
        "ss_seed": "7",
        "ss_loss_type": "l2",
        "ss_min_snr_gamma": "5.0",
        "ss_noise_offset": "0.05",
        "ss_resolution": "(64, 64)",
        "ss_gradient_checkpointing": "False",
        "ss_gradient_accumulation_steps": "1",
        "ss_batch_size_per_device": "2",
        "ss_total_batch_size": "2",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": "my_dog",
        "modelspec.resolution": "64x64",
        "modelspec.prediction_type": "epsilon",
        "modelspec.trigger_phrase": "a photo of sks dog",
        "modelspec.tags": "sks dog, sitting, a dog, red ball, on grass",
        "modelspec.encoder_layer": "2",
    }
    assert {name: header.get(name) for name in wanted} == wanted
    assert header["ss_optimizer"].startswith("torch.optim.adamw.AdamW(weight_decay=0.0001,betas=(0.9, 0.999)")
    assert "ss_training_comment" not in header  # there is no such option
    assert "modelspec.timestep_range" not in header  # all timesteps are trained
    assert json.loads(header["ss_dataset_dirs"]) == {"10_dog": dict(n_repeats=2, img_count=3)}
    assert json.loads(header["ss_reg_dataset_dirs"]) == {"1_class": dict(n_repeats=1, img_count=2)}
    started, finished = (float(header[f"ss_training_{end}_at"]) for end in ("started", "finished"))
    assert time.time() - 3600 < started < finished < time.time()
    assert header["modelspec.date"] == time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(finished))


def test_noise_and_part_of_the_timesteps_are_named(tmp_path):
    options = dict(min_timestep=100, max_timestep=900, multires_noise_iterations=6, skip_final_inference=True)
    run = train(TrainConfig(output_dir=str(tmp_path / "noisy"), **QUICK | options))
    header = header_of(run / "noisy.safetensors")
    assert header["modelspec.timestep_range"] == "100,900"
    assert header["ss_multires_noise_iterations"] == "6"
    assert header["ss_multires_noise_discount"] == "0.3"


def test_tags_of_all_captions_are_counted_by_folder(run):
    header = header_of(run / "my_dog.safetensors")
    dogs = {"sks dog": 3, "sitting": 2, "red ball": 1, "on grass": 1}
    assert json.loads(header["ss_tag_frequency"]) == {"10_dog": dogs, "1_class": {"a dog": 2}}


def test_the_rarest_tags_of_very_many_are_left_out():
    long = "x" * (MAX_TAGS - 10)
    captions = [("a", "common"), ("a", long), ("a", "b" * 20), ("a", f"{long}, common")]
    assert tag_frequency(captions) == {"a": {"common": 2, long: 2}}


def test_a_caption_that_is_no_text_for_utf_8_can_be_written():
    (tag,) = tag_frequency([("a", "half \ud800")])["a"]
    assert tag == "half ?"


def test_a_folder_whose_name_is_no_utf_8_can_be_trained_on(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    shutil.copy(EXAMPLE / "00.png", folder)
    config = TrainConfig(
        instance_data_dir=str(folder),
        instance_prompt="a dog",
        output_dir=str(tmp_path / "run"),
        skip_final_inference=True,
        **QUICK,
    )
    header = header_of(train(config) / "run.safetensors")
    assert set(json.loads(header["ss_tag_frequency"])) == {"caf\udce9"}
    assert '"caf?"' in header["gralora.facts"]
    assert read_adapter(tmp_path / "run").facts["training"]["tag_frequency"] == {"caf?": {"a dog": 1}}


def test_the_hashes_are_those_of_sd_scripts(run):
    """By its own definition: the whole file in memory, with the lines ss_ only."""
    path = run / "my_dog.safetensors"
    header = header_of(path)
    content = save(load_file(path), {name: text for name, text in header.items() if name[:3] == "ss_"})
    data = content[8 + int.from_bytes(content[:8], "little") :]
    window = content[0x100000 : 0x100000 + 0x10000]
    assert window
    assert header["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    assert header["sshs_legacy_hash"] == hashlib.sha256(window).hexdigest()[:8]
    written = path.read_bytes()
    assert written[8 + int.from_bytes(written[:8], "little") :] == data
    assert header["modelspec.hash_sha256"] == f"0x{hashlib.sha256(data).hexdigest()}"


@pytest.mark.parametrize("rows", [1, 500, 1023, 1024, 1100, 4000])
def test_the_hashes_of_other_tensors(rows):
    """Of several types, with the legacy hash's window before, around and after the ends of tensors."""
    random = torch.Generator().manual_seed(rows)
    tensors = {
        "b": torch.randn(rows, 256, generator=random),
        "a": torch.randn(rows, 3, generator=random).half(),
        "c": torch.randn(5, 7, generator=random).to(torch.float8_e4m3fn),
        "ab": torch.tensor(8.0),
        "d": torch.randn(3, 5, 2, generator=random).bfloat16(),
    }
    metadata = {"ss_a": 'quote " and \n, é', "ss_b": "\x01\x7f\\/"}
    content = save(tensors, metadata)
    found = hashes_of(tensors, metadata | {"modelspec.title": "does not count"})
    data = content[8 + int.from_bytes(content[:8], "little") :]
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    assert found.legacy == hashlib.sha256(content[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]


def decoded(url: str) -> Image.Image:
    kind, _, content = url.partition(",")
    assert kind == "data:image/jpeg;base64"
    image = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
    assert image.format == "JPEG"
    return image


def test_the_thumbnail_is_the_last_sample_image(run):
    image = decoded(header_of(run / "my_dog.safetensors")["modelspec.thumbnail"])
    sample = Image.open(run / "samples" / "step-00004" / "00.png")
    assert image.size == sample.size == (64, 64)
    difference = torch.tensor(list(image.convert("L").tobytes())).float()
    difference -= torch.tensor(list(sample.convert("L").tobytes())).float()
    assert difference.abs().mean() < 10  # of 255


def test_a_thumbnail_has_at_most_256_pixels_a_side(tmp_path):
    Image.new("RGB", (600, 300), "red").save(tmp_path / "x.png")
    assert decoded(thumbnail_url(tmp_path / "x.png")).size == (256, 128)


def test_the_preview_lies_beside_the_file(run):
    preview = (run / "my_dog.png").read_bytes()
    assert preview == (run / "samples" / "step-00004" / "00.png").read_bytes()
    assert preview_of(run) == preview_of(run / "adapter.safetensors") == run / "my_dog.png"


def test_a_run_without_sample_images_has_no_preview(tmp_path):
    run = train(TrainConfig(output_dir=str(tmp_path / "plain"), skip_final_inference=True, **QUICK))
    assert not list(run.glob("*.png"))
    assert "modelspec.thumbnail" not in header_of(run / "plain.safetensors")
    assert preview_of(run) is None


def test_no_file_of_a_run_names_a_folder_of_this_machine(run, home):
    write_card(run)
    assert "my_base" in (run / "README.md").read_text()
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".safetensors", ".json", ".jsonl", ".html", ".md", ".png"}
    assert any("tfevents" in path.name for path in files)
    found = [str(path.relative_to(run)) for path in files if WORD.encode() in path.read_bytes()]
    assert found == ["config.json"]  # needed to resume
    assert WORD.encode() not in public_config(run)
    for path in run.rglob("*.safetensors"):
        assert str(home.parent) not in json.dumps(header_of(path))
    assert read_adapter(run).facts["base"]["name"] == "my_base"


def test_the_upload_names_no_folder_and_has_the_preview(run, monkeypatch):
    uploads = []
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *_, **__: SimpleNamespace(repo_id="me/x"))
    for name in ("upload_folder", "upload_file"):
        monkeypatch.setattr(f"huggingface_hub.HfApi.{name}", lambda _, **options: uploads.append(options))
    push(run, TrainConfig(hub_token="hf_x"))
    folder, config = uploads
    assert "my_dog.png" in folder["allow_patterns"]
    assert "config.json" not in folder["allow_patterns"]
    assert config["path_in_repo"] == "config.json"
    values = json.loads(config["path_or_fileobj"])
    assert values["pretrained_model_name_or_path"] == "my_base"
    assert WORD not in json.dumps(values)
    assert "| `my_dog.safetensors` | ComfyUI" in (run / "README.md").read_text()


def test_a_path_in_an_older_file_is_not_written_again(tmp_path):
    adapter = Adapter.from_models(adapted_pipeline(AdapterConfig(rank=8, k=2), ["unet"])[1], f"/{WORD}/base")
    for write in (write_native, write_comfyui):
        write(tmp_path / "x.safetensors", adapter)
        assert WORD not in json.dumps(header_of(tmp_path / "x.safetensors"))
        assert read_adapter(tmp_path / "x.safetensors").facts["base"]["name"] == "base"


def test_a_merged_base_names_no_folder(run, home, tmp_path):
    base = ["--pretrained_model_name_or_path", str(home / "my_base")]
    convert.main([str(run), str(tmp_path / "merged"), "--to", "merged", *base])
    files = [path for path in (tmp_path / "merged").rglob("*") if path.is_file()]
    assert (tmp_path / "merged" / "model_index.json") in files
    assert [path for path in files if WORD.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("stabilityai/stable-diffusion-xl-base-1.0", "stabilityai/stable-diffusion-xl-base-1.0"),
        ("embedded tiny base", "embedded tiny base"),
        ("/home/me/models/sdxl.safetensors", "sdxl.safetensors"),
        ("models/sdxl.safetensors", "sdxl.safetensors"),
        ("C:\\models\\sdxl", "sdxl"),
        ("./sdxl/", "sdxl"),
        ("~/sdxl", "sdxl"),
        ("a/b/c", "c"),
        ("/hub/models--owner--some-name/snapshots/0123abc", "owner/some-name"),
        ("", ""),
    ],
)
def test_names_without_folders(name, shown):
    assert without_folders(name) == shown


def test_a_folder_that_looks_like_a_hub_id_is_a_folder(tmp_path, monkeypatch):
    (tmp_path / "me" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert without_folders("me/base") == "base"
    assert without_folders("me/base/..") == "me"


def test_a_conversion_writes_the_same_header_and_the_preview(run, tmp_path):
    convert.main([str(run), str(tmp_path / "my_dog.safetensors"), "--to", "comfyui"])
    assert header_of(tmp_path / "my_dog.safetensors") == header_of(run / "my_dog.safetensors")
    assert (tmp_path / "my_dog.png").read_bytes() == (run / "my_dog.png").read_bytes()
    Image.new("RGB", (8, 8)).save(tmp_path / "own.png")
    own = (tmp_path / "own.png").read_bytes()
    again = [str(tmp_path / "my_dog.safetensors"), str(tmp_path / "again.safetensors"), "--to", "comfyui"]
    convert.main(again)
    same = header_of(run / "my_dog.safetensors")
    changed = {"ss_output_name", "modelspec.title", "sshs_legacy_hash"}
    changed |= {"gralora.config"}  # of a plain LoRA
    written = header_of(tmp_path / "again.safetensors")
    assert written.keys() == same.keys()
    assert {name for name in same if written[name] != same[name]} <= changed
    assert not (tmp_path / "again.png").exists()  # no run is beside my_dog.safetensors
    convert.main([str(run), str(tmp_path / "own.safetensors"), "--to", "comfyui", "--rank", "4"])
    assert (tmp_path / "own.png").read_bytes() == own
    smaller = header_of(tmp_path / "own.safetensors")
    assert (smaller["ss_network_dim"], smaller["ss_steps"]) == ("4", "4")
    assert smaller["sshs_model_hash"] != same["sshs_model_hash"]
    convert.main([str(run), str(tmp_path / "native.safetensors"), "--to", "native"])
    assert not (tmp_path / "native.png").exists()


def test_the_adapters_that_one_was_made_from_are_named(run, tmp_path):
    (tmp_path / "style").mkdir()
    shutil.copy(run / "adapter.safetensors", tmp_path / "style" / "adapter.safetensors")
    both = tmp_path / "both.safetensors"
    convert.main([str(run), str(tmp_path / "style"), str(both), "--to", "comfyui"])
    header = header_of(both)
    assert header["modelspec.merged_from"] == "my_dog, style"
    assert "ss_learning_rate" not in header  # of one of the two
    assert not (tmp_path / "both.png").exists()
    child = train(
        TrainConfig(
            adapter=AdapterConfig(rank=16, k=2),
            start_from=str(run),
            output_dir=str(tmp_path / "child"),
            skip_final_inference=True,
            **QUICK,
        )
    )
    assert header_of(child / "child.safetensors")["modelspec.merged_from"] == "my_dog"


def test_a_file_of_another_tool_gets_a_small_header(tmp_path):
    adapter = Adapter.from_models(adapted_pipeline(AdapterConfig(method="lora", rank=8), ["unet"])[1])
    write_comfyui(tmp_path / "full.safetensors", adapter)
    layout = {"gralora.layers_per_block": "1"}  # of the embedded base
    save_file(load_file(tmp_path / "full.safetensors"), tmp_path / "foreign.safetensors", layout)
    write_comfyui(tmp_path / "style.safetensors", read_adapter(tmp_path / "foreign.safetensors"))
    names = set(header_of(tmp_path / "style.safetensors"))
    assert names == {
        "ss_base_model_version",
        "ss_v2",
        "ss_network_module",
        "ss_network_dim",
        "ss_network_alpha",
        "ss_output_name",
        "ss_tag_frequency",
        "sshs_model_hash",
        "sshs_legacy_hash",
        "modelspec.sai_model_spec",
        "modelspec.architecture",
        "modelspec.implementation",
        "modelspec.title",
        "modelspec.resolution",
        "modelspec.hash_sha256",
        "gralora.version",
        "gralora.config",
        "gralora.layers_per_block",
        "gralora.facts",
    }


@pytest.mark.filterwarnings("ignore")  # of diffusers
def test_diffusers_loads_the_file(run):
    pipeline = load_sdxl()
    pipeline.load_lora_weights(run / "my_dog.safetensors")
    (adapters,) = pipeline.get_list_adapters().values()
    assert len(adapters) == 1


HOSTILE = {
    "training": ["a list"],
    "training.values": dict(values={"learning_rate": dict(nested=1)}),
    "training.values of a name": dict(values={"../x": 1}),
    "training.values of a long text": dict(values={"seed": "x" * 5000}),
    "training.values not finite": dict(values={"seed": float("inf")}),
    "training.tag_frequency": dict(tag_frequency={"folder": {"tag": "many"}}),
    "training.tag_frequency of lists": dict(tag_frequency={"folder": ["tag"]}),
    "training.dataset_dirs": dict(dataset_dirs={"folder": dict(img_count=1)}),
    "training.reg_dataset_dirs": dict(reg_dataset_dirs={"folder": dict(img_count=-1, n_repeats=1)}),
    "training.resolution": dict(resolution=True),
    "training.timestep_range": dict(timestep_range=[0, "1000"]),
    "training.timestep_range of one": dict(timestep_range=[0]),
    "training.timestep_range reversed": dict(timestep_range=[900, 100]),
    "training.timestep_range of truth values": dict(timestep_range=[False, True]),
    "training.timestep_range too high": dict(timestep_range=[0, 10**17]),
    "training.finished_at": dict(finished_at=1e300),
    "training.thumbnail": dict(thumbnail="https://example.org/x.jpg"),
    "training.thumbnail with markup": dict(thumbnail='data:image/jpeg;base64,"><script>'),
    "training.thumbnail too long": dict(thumbnail="data:image/jpeg;base64," + "A" * 2**19),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_facts_are_one_sentence(run, tmp_path, case, capsys):
    path = tmp_path / "x.safetensors"
    header = header_of(run / "adapter.safetensors")
    facts = json.loads(header["gralora_diffusion"])
    training = HOSTILE[case]
    facts["training"] = training if isinstance(training, list) else facts["training"] | training
    save_file(load_file(run / "adapter.safetensors"), path, {"gralora_diffusion": json.dumps(facts)})
    wrong = case.split()[0]
    with pytest.raises(ConfigError, match=rf"{wrong} is wrong; the file is damaged$"):
        read_adapter(path)
    with pytest.raises(SystemExit, match="2"):
        convert.main([str(path), str(tmp_path / "out.safetensors"), "--to", "comfyui"])
    assert f"{wrong} is wrong" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("lie", [dict(parent="x"), dict(parent=dict(name=3)), dict(merged_from=[["x"]])])
def test_hostile_records_of_parents_are_one_sentence(run, tmp_path, lie):
    facts = json.loads(header_of(run / "adapter.safetensors")["gralora_diffusion"]) | lie
    path = tmp_path / "x.safetensors"
    save_file(load_file(run / "adapter.safetensors"), path, {"gralora_diffusion": json.dumps(facts)})
    with pytest.raises(ConfigError, match=rf"{next(iter(lie))} is wrong; the file is damaged$"):
        read_adapter(path)


def test_a_hostile_value_cannot_replace_what_tools_rely_on(run, tmp_path):
    adapter = read_adapter(run)
    values = adapter.facts["training"]["values"]
    values |= dict(base_model_version="sd_1.5", tag_frequency="x", network_dim=1)
    write_comfyui(tmp_path / "x.safetensors", adapter)
    header = header_of(tmp_path / "x.safetensors")
    assert header["ss_base_model_version"] == "sdxl_base_v1-0"
    assert header["ss_network_dim"] == "32"
    assert json.loads(header["ss_tag_frequency"])["10_dog"]["sks dog"] == 3


def test_a_hostile_thumbnail_in_a_foreign_header_is_one_sentence(run, tmp_path):
    header = header_of(run / "my_dog.safetensors") | {"modelspec.thumbnail": "javascript:alert(1)"}
    save_file(load_file(run / "my_dog.safetensors"), tmp_path / "x.safetensors", header)
    with pytest.raises(ConfigError, match=r"training\.thumbnail is wrong"):
        read_adapter(tmp_path / "x.safetensors")


def test_a_resumed_run_keeps_the_time_of_its_start(tmp_path):
    config = dict(output_dir=str(tmp_path / "run"), skip_final_inference=True)
    first = header_of(train(TrainConfig(**QUICK | config)) / "run.safetensors")
    second = train(TrainConfig(**QUICK | config | dict(max_train_steps=2))) / "run.safetensors"
    second = header_of(second)
    assert second["ss_training_started_at"] == first["ss_training_started_at"]
    assert float(second["ss_training_finished_at"]) > float(first["ss_training_finished_at"])
    assert (first["ss_steps"], second["ss_steps"]) == ("1", "2")


def test_a_run_of_an_earlier_version_is_read_resumed_and_exported(tmp_path):
    config = dict(output_dir=str(tmp_path / "old"), skip_final_inference=True)
    run = train(TrainConfig(**QUICK | config))
    (run / "old.safetensors").rename(run / "comfyui.safetensors")
    assert header_of(run / "comfyui.safetensors")["ss_output_name"] == "old"
    assert read_adapter(run / "comfyui.safetensors").layers.keys() == read_adapter(run).layers.keys()
    assert name_of(run / "comfyui.safetensors") == "old"
    train(TrainConfig(**QUICK | config | dict(output_kohya_format=True)))
    assert load_file(run / "old.safetensors").keys() == load_file(run / "comfyui.safetensors").keys()
    train(TrainConfig(**QUICK | config | dict(max_train_steps=2, output_kohya_format=True)))
    new = load_file(run / "old.safetensors")
    for name, tensor in load_file(run / "comfyui.safetensors").items():
        assert torch.equal(tensor, new[name])  # not those of step 1
    assert header_of(run / "comfyui.safetensors")["ss_steps"] == "2"


@pytest.mark.parametrize(
    ("folder", "file"),
    [
        ("my_dog", "my_dog.safetensors"),
        ("v1.5", "v1.5.safetensors"),
        ("adapter", "adapter_lora.safetensors"),
        ("Adapter", "Adapter_lora.safetensors"),
        ("pytorch_lora_weights", "pytorch_lora_weights_lora.safetensors"),
        ("before_after", "before_after_lora.safetensors"),
        (".hidden", "hidden.safetensors"),
        ("x" * 250, "comfyui.safetensors"),
    ],
)
def test_the_file_is_named_after_the_run_unless_that_name_is_taken(tmp_path, folder, file):
    assert named_after(tmp_path / folder) == tmp_path / folder / file


def test_a_thumbnail_is_of_a_png_alone(tmp_path):
    """Another format of that name would be handed to its decoder, EPS to another program."""
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png", "EPS")
    with pytest.raises(UnidentifiedImageError):
        thumbnail_url(tmp_path / "x.png")


def test_native_and_exported_files_have_the_same_trigger_words(run):
    found = {}
    for name in ("adapter.safetensors", "my_dog.safetensors"):
        found[name] = triggers_of(read_adapter(run / name), header_of(run / name))
    assert found["adapter.safetensors"] == found["my_dog.safetensors"]
    assert found["adapter.safetensors"][0] == "a photo of sks dog"
    assert "red ball" in found["adapter.safetensors"]


def test_a_run_that_is_named_adapter_keeps_its_adapter(tmp_path):
    run = train(TrainConfig(output_dir=str(tmp_path / "adapter"), **QUICK))
    assert {path.name for path in run.glob("*.png")} == {"adapter_lora.png", "before_after.png"}
    assert "gralora_diffusion" in header_of(run / "adapter.safetensors")
    assert header_of(run / "adapter_lora.safetensors")["ss_steps"] == "1"


def test_the_preview_of_an_old_run_is_its_last_sample_image(tmp_path):
    for step in (0, 5, 40):
        folder = tmp_path / "samples" / f"step-{step:05d}"
        folder.mkdir(parents=True)
        if step < 40:
            Image.new("RGB", (8, 8)).save(folder / "00.png")
    assert preview_of(tmp_path) is None  # not a run
    (tmp_path / "config.json").write_text("{}")
    assert preview_of(tmp_path) == tmp_path / "samples" / "step-00005" / "00.png"
    assert last_sample(tmp_path, 40) is None


def test_the_repeats_of_a_folder_count_beside_those_of_the_run():
    def image(folder: str, repeats: int) -> TrainingImage:
        return TrainingImage(Path(folder) / "a.png", "a dog", "0", (64, 64), repeats=repeats)

    images = [image("10_sks dog", 10), image("10_sks dog", 10), image("3_cat", 3)]
    assert folders_of(images, 2) == {
        "10_sks dog": dict(n_repeats=20, img_count=2),
        "3_cat": dict(n_repeats=6, img_count=1),
    }
