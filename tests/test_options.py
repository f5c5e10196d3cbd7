"""Options: unknown names, what older versions wrote, defaults in the help, and who prints an error."""

import re

import pytest

from gralora_diffusion import AdapterConfig, TrainConfig, console
from gralora_diffusion.command_line import parser_of
from gralora_diffusion.options import ConfigError, from_dict, from_flat, options_of, to_dict, to_flat


def test_flat_options_make_the_config_and_come_back():
    config = from_flat(TrainConfig, dict(rank=8, k=2, seed=3))
    assert (config.adapter, config.seed) == (AdapterConfig(rank=8, k=2), 3)
    assert from_flat(TrainConfig, to_flat(config)) == config


def test_an_unknown_option_is_refused_with_a_suggestion():
    for build, wrong, meant in ((from_flat, "rnk", "rank"), (from_dict, "sed", "seed")):
        with pytest.raises(ConfigError, match=f"unknown option '{wrong}'; did you mean '{meant}'"):
            build(TrainConfig, {wrong: 4})
        several = re.escape(f"unknown options '{wrong}' (did you mean '{meant}'?), 'zzz'")
        with pytest.raises(ConfigError, match=several):
            build(TrainConfig, {wrong: 4, "zzz": 1})


def test_a_config_that_an_older_version_wrote_for_gora_is_read():
    values = to_dict(TrainConfig(adapter=AdapterConfig(method="lora", rslora=True, alpha=16.0)))
    values["adapter"]["method"] = "gora"
    assert from_dict(TrainConfig, values).adapter == AdapterConfig(method="lora", rslora=True, alpha=16.0)


def test_the_help_names_every_default_that_is_a_value():
    text = " ".join(parser_of("", visible=None).format_help().split())
    for about in options_of(TrainConfig).values():
        if about.type in (int, float) and about.default is not None:
            assert f"(default: {about.default})" in text.partition(f" {about.flag} ")[2][:300], about.name


@pytest.mark.parametrize(("rank", "shared", "printed"), [("0", False, 1), ("1", False, 0), ("1", True, 1)])
def test_one_process_prints_what_all_see_and_each_its_own(rank, shared, printed, monkeypatch, capsys):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(console, "_work_is_shared", shared)
    with pytest.raises(SystemExit):
        console.fail("wrong")
    assert capsys.readouterr().err.count("wrong") == printed
