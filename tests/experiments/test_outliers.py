"""Outlier channels planted in the base, and runs on it."""

import json

import pytest
import torch
from sweeps import finished

from gralora_diffusion import load_sdxl
from gralora_diffusion.cli.compare import main
from gralora_diffusion.experiments.outliers import check_outliers, plant_outliers
from gralora_diffusion.experiments.rates import tuned
from gralora_diffusion.experiments.results import read_results
from gralora_diffusion.experiments.settings import HELD_OUT_LOSS, check_settings
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.base import blank_inputs, predict


def predictions(unet) -> torch.Tensor:
    torch.manual_seed(0)
    inputs = blank_inputs(unet.config, 2, unet.config.sample_size)
    return predict(unet, torch.randn_like(inputs[0]), *inputs[1:])


@torch.no_grad()
@pytest.mark.parametrize(("scale", "slices"), [(30, 1), (1000, 1), (1000, 4)])
def test_planted_outliers_leave_the_output_as_it_is(scale, slices):
    unet = load_sdxl().unet
    before = predictions(unet)
    seen = {}

    def remember(path):
        def hook(_, inputs):
            seen[path] = inputs[0].abs().mean((0, 1))

        return hook

    readers = [path for path, _ in unet.named_modules() if path.endswith(("attn1.to_q", "attn2.to_q"))]
    for path in readers:
        unet.get_submodule(path).register_forward_pre_hook(remember(path))
    predictions(unet)
    small = dict(seen)
    planted = plant_outliers(unet, scale, slices)
    after = predictions(unet)
    assert (after - before).norm() / before.norm() < 1e-5
    assert len(planted) == len(readers) == 14
    for path in readers:
        norm = path.replace("attn1.to_q", "norm1").replace("attn2.to_q", "norm2")
        channels = planted[norm]
        width = len(seen[path])
        assert [channel * slices // width for channel in channels] == list(range(slices))
        ratio = seen[path] / small[path]
        torch.testing.assert_close(ratio[channels], torch.full((slices,), float(scale)), rtol=1e-3, atol=0)
        ratio[channels] = 1
        torch.testing.assert_close(ratio, torch.ones(width), rtol=1e-3, atol=1e-3)


def test_outliers_are_planted_in_the_norms_that_are_named():
    everywhere = plant_outliers(load_sdxl().unet, 30)
    norm = next(iter(everywhere))
    unet, untouched = load_sdxl().unet, load_sdxl().unet
    with pytest.raises(ValueError, match="no norm mid_block in which"):
        plant_outliers(unet, 30, norms=[norm, "mid_block"])
    assert plant_outliers(unet, 30, norms=[norm]) == {norm: everywhere[norm]}
    changed = {name for name, p in unet.named_parameters() if (p != untouched.get_parameter(name)).any()}
    readers = [f"{norm.removesuffix('norm1')}attn1.to_{part}.weight" for part in "qkv"]
    assert changed == {f"{norm}.weight", f"{norm}.bias", *readers}


def test_channels_depend_on_the_seed_alone():
    def planted(scale, seed):
        return plant_outliers(load_sdxl().unet, scale, seed=seed)

    assert planted(10, 0) == planted(1000, 0) != planted(10, 1)


def test_what_would_change_the_base_is_refused():
    unet = load_sdxl().unet
    with pytest.raises(ConfigError, match="which 7 slices do not divide"):
        check_outliers(unet, 7, "no")
    with pytest.raises(ConfigError, match="fp16 cannot hold them"):
        check_outliers(unet, 1, "fp16")
    check_outliers(unet, 4, "bf16")


def test_runs_on_planted_outliers_are_scored_by_the_loss_alone(tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    from PIL import Image

    for number in range(12):
        color = number * 20, 100, 255 - number * 20
        Image.new("RGB", (64, 64), color).save(images / f"{number}.png")
        (images / f"{number}.txt").write_text(f"a color, number {number}")
    options = f"--output {tmp_path / 'sweep'} --instance_data_dir {images} --methods our-lora gralora"
    options += " --ranks 4 --steps 2 --batch_size 1 --lrs 1e-2 --loss_only --outliers 1 1000"
    main(options.split())
    done = read_results(tmp_path / "sweep")
    assert [list(entry["scores"]) for entry in done] == [[HELD_OUT_LOSS]] * 4
    assert {entry["run"].get("outliers") for entry in done} == {None, 1000}
    assert not list(tmp_path.glob("sweep/runs/*/*.png"))
    losses = {}
    for entry in done:
        losses.setdefault(entry["run"]["method"], []).append(entry["losses"])
    for plain, planted in losses.values():
        assert plain[0] == pytest.approx(planted[0], abs=2e-5), "the base computes the same"
        assert plain[1] != pytest.approx(planted[1], abs=2e-5), "and learns otherwise"
    capsys.readouterr()
    report = f"--output {tmp_path / 'sweep'} --report --baseline our-lora"
    with pytest.raises(SystemExit):
        main(report.split())
    assert "choose one with --outliers" in capsys.readouterr().err
    main([*report.split(), "--outliers", "1000", "--outlier_slices", "1"])
    assert "gralora k2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("--outliers 0.5", "must be at least 1"),
        ("--outlier_slices 0", "must be at least 1"),
        ("--outliers nan", "must be at least 1, and finite"),
        ("--outliers inf", "must be at least 1, and finite"),
        ("--outlier_slices 4", "needs --outliers"),
        ("--outliers 10 --outlier_slices 7 --dry_run --prompts PROMPTS", "7 slices do not divide"),
        ("--loss_only --strengths 0.5", "--loss_only generates no images"),
        ("--training_loss --encoder imagenet", "--training_loss generates no images"),
        ("--training_loss --loss_only", "choose one"),
    ],
)
def test_wrong_options_are_refused(tmp_path, capsys, options, problem):
    (tmp_path / "prompts.txt").write_text("a photo of sks robot")
    options = options.replace("PROMPTS", str(tmp_path / "prompts.txt"))
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path), *options.split()])
    assert problem in capsys.readouterr().err


def test_a_rate_is_tuned_on_the_same_outliers():
    done = [finished("our-lora", lr, 0, value) for lr, value in ((1e-3, 0.8), (1e-2, 0.4))]
    planted = [finished("our-lora", lr, 0, value) for lr, value in ((1e-3, 0.2), (1e-2, 0.4))]
    for entry in planted:
        entry["run"] |= dict(outliers=100.0, outlier_slices=1)
    done += planted
    runs = [json.loads(json.dumps(entry["run"])) | dict(part="test") for entry in done]
    kept = [(run.get("outliers"), run["lr"]) for run in tuned(runs, done, None, False)]
    assert kept == [(None, 1e-3), (100.0, 1e-2)]
    with pytest.raises(ConfigError, match="choose one with --outliers"):
        check_settings(done)
