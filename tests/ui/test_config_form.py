"""The form of the Train tab, without a browser: values, groups, the equivalent command, mistakes."""

import re
import shlex

import pytest
from train_form import form_values

from gralora_diffusion.command_line import parse, parser_of
from gralora_diffusion.config import GROUPS, TrainConfig
from gralora_diffusion.options import ConfigError, options_of
from gralora_diffusion.presets import PRESETS
from gralora_diffusion.ui import config_form, train_questions
from gralora_diffusion.ui.workspace import EMBEDDED, SDXL

HOSTILE = [
    "--push_to_hub",
    "$(id)",
    ";rm -rf /",
    "a'b\"c",
    "`id`",
    "%2e%2e",
    "-x=1",
    "{0}",
    "\\n",
    "*",
    "é 机器人",
    "<img src=x onerror=alert(1)>",
    "True",
]
BAD_BASES = [
    "http://evil.example/x",
    "file:///etc",
    "../../etc",
    "/etc/passwd",
    "--push_to_hub",
    "a/b/c",
    "models/../x",
    "x.ckpt",
    "a/..",
    "runs/x",
]


def test_every_option_of_the_command_line_is_on_the_form():
    options = options_of(TrainConfig)
    assert config_form.FIELDS.keys() == options.keys() - set(config_form.NO_FIELD)
    in_sight = (*config_form.FIRST, *config_form.MIDDLE)
    assert tuple(config_form.FIELDS)[: len(in_sight)] == in_sight


def test_every_option_has_a_group():
    assert all(option.group in GROUPS for option in options_of(TrainConfig).values())
    below = [option.name for options in config_form.grouped_fields().values() for option in options]
    assert sorted([*below, *config_form.FIRST, *config_form.MIDDLE]) == sorted(config_form.FIELDS)


def groups_in_help() -> dict[str, str]:
    """{title: text} of `gralora train --help_all`."""
    text = parser_of("", visible=None).format_help()
    parts = re.split(r"^(\S.*):$", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("hub_token", "Hub and trackers"),
        ("sample_batch_size", "Prior preservation"),
        ("class_data_dir", "Prior preservation"),
        ("num_inference_steps", "Sample images"),
    ],
)
def test_form_and_help_have_the_same_groups(name, group):
    assert name in [option.name for option in config_form.grouped_fields()[group]]
    found = [title for title, text in groups_in_help().items() if f"--{name} " in text]
    assert found == [group]
    assert list(config_form.grouped_fields()) == list(GROUPS)


def test_a_cloned_run_may_have_ranks_of_another(workspace):
    """The form has the other run's name, the command line the path of its allocation.json."""
    (workspace.runs / "first").mkdir()
    for file in ("config.json", "allocation.json"):
        (workspace.runs / "first" / file).write_text("{}")
    config = config_form.to_config(form_values(allocation="first"), workspace)
    assert config.allocation == "runs/first/allocation.json"
    values = config_form.from_config(config, workspace)
    assert values["allocation"] == "first"
    assert config_form.to_config(values, workspace) == config


def test_an_untouched_form_is_the_default_config_with_previews(workspace):
    assert config_form.to_config(form_values(), workspace) == TrainConfig(validation_steps=100)


@pytest.mark.parametrize(
    ("values", "every"),
    [
        ({}, (100, None)),
        (dict(pretrained_model_name_or_path=SDXL), (84, None)),
        (dict(max_train_steps="1"), (1, None)),
        (dict(max_train_steps="1000"), (167, None)),
        (dict(num_train_epochs="12"), (None, 2)),
        (dict(validation_epochs="3"), (None, 3)),
        (dict(validation_steps="7"), (7, None)),
        (dict(validation_steps="0"), (None, None)),
    ],
)
def test_previews_are_about_six_times_a_run_unless_asked_for(values, every, workspace):
    """So that one of the last step is among them; and a run's config is the form's again."""
    config = config_form.to_config(form_values(**values), workspace)
    assert (config.validation_steps, config.validation_epochs) == every
    assert config_form.to_config(config_form.from_config(config, workspace), workspace) == config


@pytest.mark.parametrize("values", [{}, dict(max_train_steps="600"), dict(num_train_epochs="12")])
def test_a_duplicated_form_leaves_the_interval_of_previews_to_the_steps(values, workspace):
    config = config_form.to_config(form_values(**values), workspace)
    again = config_form.from_config(config, workspace)
    assert (again["validation_steps"], again["validation_epochs"]) == ("", "")
    assert config_form.from_config(TrainConfig(validation_steps=7), workspace)["validation_steps"] == "7"


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_form_command_and_config_agree(preset, workspace):
    base = "some/sdxl" if preset else EMBEDDED
    given = dict(pretrained_model_name_or_path=base, instance_prompt="a photo of sks dog")
    values = form_values(**given, rank_pattern='{"attn2": 8}', prodigy_decouple=True)
    values |= train_questions.recommended(preset, workspace)
    config = config_form.to_config(values, workspace, "dog-1")
    assert parse("", config_form.arguments(config)) == config
    words = shlex.split(config_form.command(config).replace("\\\n", " "))
    assert words[:2] == ["gralora", "train"]
    assert parse("", words[2:]) == config
    assert config_form.to_config(config_form.from_config(config, workspace), workspace, "dog-1") == config


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_is_one_argument_verbatim(text, workspace):
    config = config_form.to_config(
        form_values(instance_prompt=text, validation_prompt=text), workspace, "run-1"
    )
    assert f"--instance_prompt={text}" in config_form.arguments(config)
    parsed = parse("", config_form.arguments(config))
    assert (parsed.instance_prompt, parsed.validation_prompt, parsed.push_to_hub) == (text, text, False)
    assert parse("", shlex.split(config_form.command(config).replace("\\\n", " "))[2:]) == parsed


@pytest.mark.parametrize(
    ("values", "name", "words"),
    [
        (dict(max_train_steps="0"), "max_train_steps", "at least 1"),
        (dict(max_train_steps="many"), "max_train_steps", "a number"),
        (dict(rank=2.5), "rank", "whole number"),
        (dict(learning_rate="nan"), "learning_rate", "finite"),
        (dict(max_train_steps="inf"), "max_train_steps", "finite"),
        (dict(resolution="100"), "resolution", "divisible by 8"),
        (dict(lr_warmup_steps=5), "lr_warmup_steps", "no effect"),
        (dict(method="lora", k="4"), "k", "GraLoRA k (blocks per side)” is an option of GraLoRA"),
        (dict(method="dora"), "method", "one of"),
        (dict(rank_pattern="[1]"), "rank_pattern", "JSON object"),
        (dict(instance_prompt="a\nb"), "instance_prompt", "one line"),
        (dict(instance_prompt="x" * 5000), "instance_prompt", "at most"),
        (dict(instance_data_dir="../../etc"), "instance_data_dir", "no dataset"),
        (dict(logging_dir="../x"), "logging_dir", "plain name"),
        (dict(cache_dir="/etc"), "cache_dir", "plain name"),
        (dict(dataset_name="mine"), "dataset_name", "'mine' is not a Hugging Face ID"),
        *(
            (dict(pretrained_model_name_or_path=base), config_form.BASE, "Hugging Face ID")
            for base in BAD_BASES
        ),
    ],
)
def test_a_mistake_names_its_field(values, name, words, workspace):
    with pytest.raises(ConfigError) as error:
        config_form.to_config(form_values(**values), workspace)
    assert error.value.option == name
    assert words in str(error.value)


def test_a_token_is_never_in_the_config_or_the_command(workspace):
    config = config_form.to_config(form_values(hub_token="hf_secret", push_to_hub=True), workspace, "run-1")
    assert "hf_secret" not in config_form.command(config) + " ".join(config_form.arguments(config)) + repr(
        config
    )


def test_numbers_of_a_config_keep_all_their_digits(workspace):
    config = TrainConfig(learning_rate=1.23456789e-4, snr_gamma=5.0000001)
    values = config_form.from_config(config, workspace)
    assert config_form.to_config(values, workspace) == config


def test_encoders_are_named_and_never_a_folder(workspace):
    for text in ("auto", "imagenet, embedded"):
        assert config_form.to_config(form_values(score_encoders=text), workspace).score_encoders == text
    for text in ("clip:/etc", "imagenet,dinov2:../x"):
        with pytest.raises(ConfigError) as error:
            config_form.to_config(form_values(score_encoders=text), workspace)
        assert error.value.option == "score_encoders"
