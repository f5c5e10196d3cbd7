"""Rectified flow: formulas, a base that is one, and its objective in training, images, merges and headers."""

import dataclasses
import json
import shutil
import sys

import pytest
import torch
from helpers import SCRIPTS
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from gralora_diffusion import AdapterConfig, TrainConfig, load_sdxl
from gralora_diffusion.formats.merge_base import write_merged
from gralora_diffusion.formats.read import read_adapter
from gralora_diffusion.formats.write import write_comfyui
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.flow import flow_objective, is_flow
from gralora_diffusion.sdxl.objective import (
    header_of,
    objective_of_checkpoint,
    objective_of_folder,
    objective_of_header,
    objective_of_scheduler,
    objective_text,
)
from gralora_diffusion.sdxl.sampling import as_trained, sample
from gralora_diffusion.training.loss import add_noise, huber_thresholds, noise_schedule, target
from gralora_diffusion.training.run_folder import read_evaluations, read_metrics
from gralora_diffusion.training.train import train

sys.path.insert(0, str(SCRIPTS))

import flow_base

QUICK = TrainConfig(
    adapter=AdapterConfig(rank=8, k=2),
    max_train_steps=3,
    train_batch_size=2,
    learning_rate=1e-3,
    num_inference_steps=2,
    checkpointing_steps=1,
)
EPSILON = dict(prediction_type="epsilon", rescale_betas_zero_snr=False)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> tuple:
    """(folder of the embedded base as a flow after a few steps, their losses)"""
    folder = tmp_path_factory.mktemp("flow")
    pipeline = load_sdxl()
    torch.manual_seed(0)
    data = dict(moments=torch.zeros(1, 2, 16, 8, 8), embeds=torch.zeros(2, 32, 0), pooled=torch.zeros(2, 0))
    prompts = flow_base.encode_prompts(pipeline, ["a photo of a robot", ""])
    data |= dict(embeds=prompts.embeds, pooled=prompts.pooled)
    data["moments"][0, 0] = torch.randn(16, 8, 8)
    losses = flow_base.fine_tune(pipeline, data, 25, 1e-3, batch=4)
    pipeline.register_modules(scheduler=flow_base.FlowMatchEulerDiscreteScheduler(shift=2.0))
    pipeline.save_pretrained(folder / "base")
    return folder / "base", losses


def quick(folder, base, **options):
    run = dataclasses.replace(QUICK, output_dir=str(folder), pretrained_model_name_or_path=str(base))
    return train(dataclasses.replace(run, **options))


def test_a_short_fine_tune_makes_the_base_a_flow_and_images_are_finite(tuned):
    base, losses = tuned
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    pipeline = load_sdxl(str(base))
    assert is_flow(pipeline.scheduler.config)
    images = sample(pipeline, ["a photo of a robot"], num_images=2, num_inference_steps=4, guidance_scale=3.0)
    assert all(any(low < high for low, high in image.getextrema()) for image in images)


def test_the_path_and_its_target():
    torch.manual_seed(0)
    latents, noise = torch.randn(2, 3, 4, 2, 2)
    timesteps = torch.tensor([0.0, 250.0, 1000.0])
    noisy = add_noise(latents, noise, timesteps, None)
    torch.testing.assert_close(noisy[0], latents[0])
    torch.testing.assert_close(noisy[1], 0.75 * latents[1] + 0.25 * noise[1])
    torch.testing.assert_close(noisy[2], noise[2])
    wanted = target(latents, noise, timesteps, None, "flow")
    later = add_noise(latents, noise, timesteps + 1e-1, None)
    torch.testing.assert_close((later - noisy) / 1e-4, wanted, rtol=0, atol=2e-2)  # dx/ds
    torch.testing.assert_close(noisy - timesteps.view(-1, 1, 1, 1) / 1000 * wanted, latents)  # back to x_0


def test_one_step_of_diffusers_with_the_true_velocity_arrives_at_the_image():
    from gralora_diffusion.sdxl.flow import for_pipeline

    scheduler = for_pipeline(as_trained(load_sdxl().scheduler, **flow_objective(3.0)))
    scheduler.set_timesteps(4)
    torch.manual_seed(0)
    latents, noise = torch.randn(2, 1, 4, 8, 8)
    x = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        torch.testing.assert_close(
            scheduler.scale_model_input(x, t), add_noise(latents, noise, t[None], None)
        )
        x = scheduler.step(noise - latents, t, x).prev_sample
    torch.testing.assert_close(x, latents, rtol=0, atol=1e-5)


def test_hubers_thresholds_follow_the_flows_snr():
    t = torch.tensor([0.0, 500.0, 1000.0])
    torch.testing.assert_close(huber_thresholds(t, None, 0.1, "snr"), torch.tensor([1.0, 0.325, 0.1]))
    torch.testing.assert_close(
        huber_thresholds(t, None, 0.1, "exponential"), torch.tensor([1, 0.1**0.5, 0.1])
    )
    torch.testing.assert_close(huber_thresholds(t, None, 0.1, "constant"), torch.full((3,), 0.1))


@pytest.mark.parametrize(
    "options", [{}, dict(loss_type="huber", timestep_density="logit_normal", flow_shift=3.0)]
)
def test_a_run_on_a_flow_knows_it_and_its_files_say_so(tuned, tmp_path, options, capsys):
    run = quick(tmp_path / "run", tuned[0], validation_split=0.3, validation_steps=1, **options)
    shift = options.get("flow_shift", 2.0)
    assert f"prediction: flow with shift {shift:g}" in capsys.readouterr().out
    config = json.loads((run / "config.json").read_text())
    assert (config["prediction_type"], config["flow_shift"]) == ("flow", shift)
    assert all(line["loss"] > 0 for line in read_metrics(run))
    assert len({line["validation_loss"] for line in read_evaluations(run)}) == 4
    for name in ("adapter.safetensors", "run.safetensors"):
        assert read_adapter(run / name).facts["objective"] == flow_objective(shift)
    with safe_open(run / "run.safetensors", "pt") as file:
        header = file.metadata()
    assert header["modelspec.prediction_type"] == "flow"
    assert header["ss_discrete_flow_shift"] == f"{shift:g}"


def test_it_resumes_bit_by_bit(tuned, tmp_path):
    options = dict(timestep_density="logit_normal", skip_final_inference=True, multires_noise_iterations=4)
    run = quick(tmp_path / "run", tuned[0], **options)
    whole, losses = load_file(run / "adapter.safetensors"), [line["loss"] for line in read_metrics(run)]
    for step in (2, 3):
        shutil.rmtree(run / f"checkpoint-{step}")
    status = run / "status.json"
    status.write_text(json.dumps(json.loads(status.read_text()) | dict(state="stopped")))
    quick(tmp_path / "run", tuned[0], **options)
    again = load_file(run / "adapter.safetensors")
    assert [line["loss"] for line in read_metrics(run)] == losses
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_options_of_diffusion_are_refused_on_a_base_that_is_a_flow(tuned, tmp_path):
    with pytest.raises(ConfigError, match="--snr_gamma is for diffusion models") as caught:
        quick(tmp_path / "run", tuned[0], snr_gamma=5.0)
    assert caught.value.option == "snr_gamma"
    with pytest.raises(ConfigError, match="--flow_shift needs --prediction_type flow, not epsilon"):
        train(dataclasses.replace(QUICK, output_dir=str(tmp_path / "run"), flow_shift=3.0))
    assert not (tmp_path / "run").exists()


def test_the_objective_travels_into_merged_bases(tuned, tmp_path):
    run = quick(tmp_path / "run", tuned[0], skip_final_inference=True, flow_shift=3.0)
    adapter = read_adapter(run / "adapter.safetensors")
    write_merged(tmp_path / "folder", adapter, str(tuned[0]), torch.float32)
    assert objective_of_folder(tmp_path / "folder") == flow_objective(3.0)
    index = json.loads((tmp_path / "folder" / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    scheduler = load_sdxl(str(tmp_path / "folder")).scheduler
    assert as_trained(scheduler, **flow_objective(3.0)) is scheduler
    write_merged(tmp_path / "file.safetensors", adapter, str(tuned[0]), torch.float32)
    with safe_open(tmp_path / "file.safetensors", "pt") as file:
        assert objective_of_checkpoint(set(file.keys()), file.metadata()) == flow_objective(3.0)
    write_comfyui(tmp_path / "lora.safetensors", adapter)
    assert read_adapter(tmp_path / "lora.safetensors").facts["objective"] == flow_objective(3.0)


def test_a_scheduler_changes_to_a_flow_and_back():
    scheduler = load_sdxl().scheduler
    flow = as_trained(scheduler, **flow_objective(3.0))
    assert objective_of_scheduler(flow.config) == flow_objective(3.0)
    assert objective_of_scheduler(as_trained(flow, **EPSILON).config) == EPSILON
    assert as_trained(flow, **flow_objective()) is flow  # whose shift an adapter does not say
    assert torch.equal(noise_schedule(flow), noise_schedule(scheduler))
    assert noise_schedule(flow, prediction_type="flow") is None


@pytest.mark.parametrize("name", ["flow", "Rectified_Flow", "flow-matching", "rf"])
def test_headers_of_other_tools_name_it(name):
    assert objective_of_header({"modelspec.prediction_type": name}) == flow_objective()
    assert objective_text(flow_objective()) == "flow"
    assert objective_text(flow_objective(1.0)) == "flow with shift 1"
    assert objective_of_header(header_of(flow_objective(2.5))) == flow_objective(2.5)


@pytest.mark.parametrize("shift", ["nan", "-1", "1e9", "x", "inf"])
def test_a_shift_that_is_none_is_not_taken(shift):
    header = {"modelspec.prediction_type": "flow", "ss_discrete_flow_shift": shift}
    assert objective_of_header(header) == flow_objective()


def test_files_that_contradict_themselves_or_shift_by_size_are_refused(tuned, tmp_path):
    shutil.copytree(tuned[0], tmp_path / "base")
    index = tmp_path / "base" / "model_index.json"
    config = tmp_path / "base" / "scheduler" / "scheduler_config.json"
    good = config.read_text()
    config.write_text(json.dumps(json.loads(good) | dict(use_dynamic_shifting=True)))
    with pytest.raises(ConfigError, match="use_dynamic_shifting"):
        load_sdxl(str(tmp_path / "base"))
    config.write_text(good)
    text = index.read_text().replace("FlowMatchEulerDiscreteScheduler", "EulerDiscreteScheduler")
    index.write_text(text)
    with pytest.raises(ConfigError, match=r"model_index\.json names another scheduler"):
        load_sdxl(str(tmp_path / "base"))


def test_images_of_a_flow_say_so_also_at_the_step_that_a_run_starts_from(tmp_path):
    common = dict(prediction_type="flow", flow_shift=3.0, validation_prompt="a robot", max_train_steps=1)
    first = train(dataclasses.replace(QUICK, output_dir=str(tmp_path / "first"), **common))
    again = dict(output_dir=str(tmp_path / "again"), start_from=str(first))
    second = train(dataclasses.replace(QUICK, **again, **common))
    found = []
    for run, step in ((first, 0), (first, 1), (second, 0)):
        with Image.open(run / "samples" / f"step-{step:05d}" / "00.png") as image:
            facts = json.loads(image.info["gralora"])
        names = [adapter["name"] for adapter in facts["adapters"]]
        found.append((facts["prediction_type"], facts.get("flow_shift"), names))
    assert found == [("epsilon", None, []), ("flow", 3.0, ["first"]), ("flow", 3.0, ["first"])]
