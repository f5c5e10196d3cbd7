"""Whatever is wrong with the Train form: a sentence with the field's label, without flags and paths."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from train_form import form_values

import gralora_diffusion
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.data.dataset import EXAMPLE
from gralora_diffusion.options import ConfigError, Option, value_in
from gralora_diffusion.ui.config_form import FIELDS, IMAGES, choices, to_config
from gralora_diffusion.ui.forecasts import estimate_of, known_refusal
from gralora_diffusion.ui.image_sets import save_captions
from gralora_diffusion.ui.mistakes import field_of, mistake_updates
from gralora_diffusion.ui.page_words import OPTIONS
from gralora_diffusion.ui.workspace import Workspace

PACKAGE = Path(gralora_diffusion.__file__).parent
NAMES = [name for name in OPTIONS if "_" in name]
COMMAND_LINE = re.compile(rf"(?<![\w'\"])--?[a-z]|`|\b({'|'.join(NAMES)})\b")
PATHS = re.compile(r"(?<![\w'\"])[~.]*/\w")


def refusal_of(values: dict, workspace: Workspace) -> ConfigError:
    with pytest.raises(ConfigError) as error:
        estimate_of(to_config(form_values(**values), workspace), workspace)
    return error.value


def assert_clear(error: ConfigError, workspace: Workspace) -> None:
    """But for what the user has typed, which is quoted."""
    text = re.sub(r"'[^']*'", "''", str(error))
    assert field_of(error) is not None, (error.option, text)
    assert FIELDS[error.option].label in str(error)
    assert not COMMAND_LINE.search(text), text
    assert not PATHS.search(text), text
    assert str(workspace.root) not in str(error)
    assert text.isprintable()


def numbers_out_of_bounds():
    """(option, value) beyond each bound of each number, and no number at all."""
    for name, option in FIELDS.items():
        if option.type not in (int, float):
            continue
        rule = option.rule
        values = ["many", "nan" if option.type is float else "2.5", "inf"]
        if rule.at_least is not None and name != "validation_steps":  # where 0 is no previews
            values.append(rule.at_least - 1)
        if rule.above is not None:
            values.append(rule.above)
        if rule.at_most is not None:
            values.append(rule.at_most + 1)
        yield from ((name, value) for value in values)


@pytest.mark.parametrize(("name", "value"), numbers_out_of_bounds())
def test_numbers_out_of_bounds(name, value, workspace):
    error = refusal_of({name: value}, workspace)
    assert error.option == name
    assert_clear(error, workspace)


@pytest.mark.parametrize("name", [name for name, option in FIELDS.items() if choices(option)])
def test_values_that_are_not_offered(name, workspace):
    error = refusal_of({name: "nonsense"}, workspace)
    assert error.option == name
    assert_clear(error, workspace)


def has_effect(option: Option) -> bool:
    """Whether the untouched form gives one of the options that this one needs."""
    default = TrainConfig()
    needs = [(value_in(default, other), wanted) for other, wanted in option.needs.items()]
    return not needs or any(wanted is not True and value in wanted for value, wanted in needs)


def without_effect():
    """(option, a value of it) for each option that has no effect on the untouched form."""
    for name, option in FIELDS.items():
        if has_effect(option):
            continue
        if option.type is bool:
            yield name, not option.default
        elif option.type in (int, float):
            values = [option.type(value) for value in (1, 2, 0.5)]
            yield name, next(v for v in values if v != option.default and not option.rule.problem(v))
        elif option.kind == "value":
            yield name, next((value for value in choices(option) or () if value != option.default), "x")


@pytest.mark.parametrize(("name", "value"), without_effect())
def test_options_without_an_effect(name, value, workspace):
    others = dict(validation_steps="0") if name == "keep_best" else {}
    error = refusal_of({name: value} | others, workspace)
    assert error.option == name
    assert_clear(error, workspace)


INT8 = "int8-torchao"
CONTRADICTIONS = [
    (dict(resolution="100"), "resolution"),
    (dict(hybrid_rank=4, method="lora"), "hybrid_rank"),
    (dict(tlora=True, tlora_min_rank="99"), "tlora_min_rank"),
    (dict(rank_pattern='{"a": -1}'), "rank_pattern"),
    (dict(rank_pattern="[1]"), "rank_pattern"),
    (
        dict(base_model_precision=INT8, offload_unet=True, gradient_checkpointing=True),
        "offload_unet",
    ),
    (dict(compile=True, base_model_precision=INT8), "compile"),
    (dict(validation_size="12"), "validation_size"),
    (dict(validation_size="100x100"), "validation_size"),
    (dict(orthogonal_start="random", allocate="gora"), "orthogonal_start"),
    (dict(orthogonal_start="base", base_model_precision=INT8), "orthogonal_start"),
    (dict(max_token_length=80), "max_token_length"),
    (dict(masked_loss=True, dataset_name="some/data"), "masked_loss"),
    (dict(max_train_steps="5", num_train_epochs="5"), "num_train_epochs"),
    (dict(with_prior_preservation=True), "class_data_dir"),
    (dict(validation_split=0.1, validation_dir="mine"), "validation_split"),
    (dict(keep_best="loss"), "keep_best"),
    (dict(keep_best="score", skip_final_inference=True), "keep_best"),
    (dict(score_encoders="auto", skip_final_inference=True), "score_encoders"),
    (dict(score_encoders="auto,/etc"), "score_encoders"),
    (
        dict(prior_by_prediction=True, class_prompt="x", with_prior_preservation=True, class_data_dir="mine"),
        "prior_by_prediction",
    ),
    (dict(prior_by_prediction=True), "class_prompt"),
    (dict(prior_by_prediction=True, class_prompt="a dog", compile=True), "compile"),
    (dict(min_timestep=500, max_timestep=400), "min_timestep"),
    (dict(multires_noise_iterations=6, noise_offset=0.1), "noise_offset"),
    (dict(flow_shift="3", prediction_type="epsilon"), "flow_shift"),
    (dict(prediction_type="flow", snr_gamma="5"), "snr_gamma"),
    (dict(optimizer="AdamWScheduleFree", lr_scheduler="cosine"), "lr_scheduler"),
    (dict(optimizer="AdamWScheduleFree", adam_beta1=0), "adam_beta1"),
    (dict(optimizer="Prodigy", scale_lr=True), "optimizer"),
    (dict(lr_pattern='{"a": "b"}'), "lr_pattern"),
    (dict(lr_scheduler="piecewise_constant", lr_step_rules="x"), "lr_step_rules"),
    (dict(lr_scheduler="cosine", lr_warmup_steps=900, max_train_steps="800"), "lr_warmup_steps"),
    (dict(allocate="gora", rank_pattern='{"attn2": 8}'), "allocate"),
    (dict(allocate="gora", base_model_precision=INT8), "base_model_precision"),
    (dict(allocate="ralora", method="lora"), "allocate"),
    (dict(allocate="uniform", gora_min_rank="4"), "gora_min_rank"),
    (dict(allocate="uniform", gora_rounding="paper"), "gora_rounding"),
    (dict(instance_prompt="a\nb"), "instance_prompt"),
    (dict(cache_dir="/etc"), "cache_dir"),
    (dict(pretrained_vae_model_name_or_path="../x"), "pretrained_vae_model_name_or_path"),
    (dict(dataset_name="/etc"), "dataset_name"),
    (dict(pretrained_model_name_or_path="file:///etc"), "pretrained_model_name_or_path"),
    (dict(allocation="nothing"), "allocation"),
    (dict(allocation="robot-1"), "allocation"),
    (dict(mask_dir="gone", masked_loss=True), "mask_dir"),
]


@pytest.fixture
def filled(workspace, finished_run):
    """Datasets with and without captions, of files that are no images; a run, bases, adapters."""
    shutil.copytree(finished_run, workspace.runs / "robot-1")
    for name in ("mine", "captioned", "broken", "empty", "other"):
        (workspace.images / name).mkdir()
    for name in ("mine", "captioned"):
        for number in range(3):
            shutil.copy(EXAMPLE / f"0{number}.png", workspace.images / name / f"{number}.png")
    for number in range(3):
        (workspace.images / "captioned" / f"{number}.txt").write_text("a photo of sks robot\n")
    shutil.copy(EXAMPLE / "05.png", workspace.images / "other" / "5.png")
    (workspace.images / "broken" / "page.png").write_text("<html>")
    (workspace.models / "broken.safetensors").write_bytes(b"pickle")
    (workspace.adapters / "broken.safetensors").write_bytes(b"pickle")
    (workspace.runs / "ranks").mkdir()
    (workspace.runs / "ranks" / "config.json").write_text("{}")
    (workspace.runs / "ranks" / "allocation.json").write_text(json.dumps({"layers": {"x": 1}}))
    sizes = {"unet.no_such_layer": dict(rank=4, k=1)}
    (workspace.runs / "strange").mkdir()
    (workspace.runs / "strange" / "config.json").write_text("{}")
    (workspace.runs / "strange" / "allocation.json").write_text(json.dumps({"layers": sizes}))
    return workspace


@pytest.mark.parametrize(("values", "option"), CONTRADICTIONS, ids=lambda value: str(value)[:60])
def test_contradictions(values, option, filled):
    error = refusal_of(values, filled)
    assert error.option == option
    assert_clear(error, filled)


MINE = dict(instance_data_dir="mine")
CAPTIONED = dict(instance_data_dir="captioned")
OF_FILES = [  # what is found only where files and shapes are read
    (MINE, "instance_prompt", "mine has no caption"),
    (dict(instance_data_dir="empty", instance_prompt="x"), IMAGES, "empty holds no images"),
    (dict(instance_data_dir="broken", instance_prompt="x"), IMAGES, "broken holds 1 file"),
    (CAPTIONED | dict(masked_loss=True), "masked_loss", "and no image has one"),
    (CAPTIONED | dict(masked_loss=True, mask_dir="other"), "mask_dir", "other holds no mask"),
    (CAPTIONED | dict(masked_loss=True, mask_dir="captioned"), "mask_dir", "captioned is the folder"),
    (CAPTIONED | dict(validation_split=0.9, keep_best="loss"), "validation_split", "without training images"),
    (CAPTIONED | dict(validation_dir="mine"), "instance_prompt", "mine has no caption"),
    (CAPTIONED | dict(validation_dir="captioned"), "validation_dir", "the same image"),
    (CAPTIONED | dict(validation_dir="empty"), "validation_dir", "empty holds no images"),
    (CAPTIONED | dict(caption_column="x"), "caption_column", "there is neither"),
    (
        dict(dataset_name="owner/name", streaming=True, cache_latents=False),
        "streaming",
        "turn on “Keep the latent cache”",
    ),
    (
        CAPTIONED | dict(with_prior_preservation=True, class_data_dir="captioned", class_prompt="x"),
        "class_data_dir",
        "another folder",
    ),
    (
        CAPTIONED | dict(with_prior_preservation=True, class_data_dir="other"),
        "class_prompt",
        "the class images in other",
    ),
    (dict(rank=999), "rank", "it must be from 1 to"),
    (dict(rank=8, k="3"), "k", ""),
    (dict(targets="no_such_layer"), "targets", "matches no linear layer"),
    (dict(targets="("), "targets", "not a regular expression"),
    (dict(rank_pattern='{"no_such": 4}'), "rank_pattern", "matches none"),
    (dict(lr_pattern='{"no_such": 4}'), "lr_pattern", ""),
    (dict(pretrained_model_name_or_path="broken.safetensors"), "pretrained_model_name_or_path", ""),
    (dict(start_from="broken.safetensors"), "start_from", "broken.safetensors"),
    (dict(allocation="ranks"), "allocation", "ranks"),
    (dict(allocation="strange"), "allocation", "strange/allocation.json does not fit"),
    (dict(start_from="robot-1", allocate="gora"), "start_from", ""),
]


@pytest.mark.parametrize(("values", "option", "words"), OF_FILES, ids=lambda value: str(value)[:60])
def test_what_the_files_show(values, option, words, filled):
    error = refusal_of(values, filled)
    assert (error.option, words in str(error)) == (option, True), str(error)
    assert_clear(error, filled)


def test_class_images_are_estimated(filled):
    values = CAPTIONED | dict(with_prior_preservation=True, class_data_dir="other", class_prompt="a robot")
    rows = dict(estimate_of(to_config(form_values(**values), filled), filled).rows)
    assert "of your own in other" in rows["Class images"]


@pytest.mark.parametrize(
    ("steps", "words"),
    [("3", "3 steps, batch size 1, less than one epoch"), ("6", "6 steps, batch size 1, 1 epoch")],
)
def test_a_part_of_an_epoch_is_not_none(steps, words, workspace):
    """With the six bundled images."""
    values = form_values(max_train_steps=steps, train_batch_size="1")
    assert dict(estimate_of(to_config(values, workspace), workspace).rows)["Training"] == words


def test_a_start_from_an_adapter_of_this_page(filled):
    """A run, a checkpoint of it, and a file that was added: each is a plan that can start."""
    shutil.copy(filled.runs / "robot-1" / "adapter.safetensors", filled.adapters / "added.safetensors")
    names = [value for _, value in filled.adapter_choices()]
    assert "added.safetensors" in names
    for name in names:
        if name != "broken.safetensors":
            rows = dict(estimate_of(to_config(form_values(start_from=name), filled), filled).rows)
            assert name.partition(".")[0] in rows["Starts from"]
            assert str(filled.root) not in str(rows)


@pytest.fixture
def mine(workspace):
    """A dataset of four images without captions."""
    folder = workspace.images / "mine"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (64, 64), (60 * number, 0, 0)).save(folder / f"{number}.png")
    return folder


def test_captions_that_were_added_meanwhile_are_noticed(workspace, mine):
    """Also where only an earlier refusal would be repeated, as after each change of the form."""
    error = refusal_of({IMAGES: "mine"}, workspace)
    assert error.option == "instance_prompt"
    box, marks = mistake_updates(error)
    assert box["value"] == str(error)
    assert "no caption" in box["value"]
    assert json.loads(marks) == [["option-instance_prompt", str(error)]]
    config = to_config(form_values(**{IMAGES: "mine"}), workspace)
    assert known_refusal(config, workspace) is not None
    save_captions(workspace, "mine", {path.name: "a red square" for path in mine.glob("*.png")})
    assert known_refusal(config, workspace) is None
    assert estimate_of(config, workspace).rows
    for path in mine.glob("*.txt"):
        path.unlink()
    assert refusal_of({IMAGES: "mine"}, workspace).option == "instance_prompt"
