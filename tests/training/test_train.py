"""Training on the embedded base: what it writes, that it learns, and that it is exact."""

import dataclasses
import gc
import json
import re

import pytest
import torch
from PIL import ImageChops
from safetensors import safe_open
from safetensors.torch import load_file

from gralora_diffusion import AdapterConfig, TrainConfig, load_adapter, load_sdxl
from gralora_diffusion.adapters.registry import adapted_layers
from gralora_diffusion.data.dataset import EXAMPLE
from gralora_diffusion.data.images import open_image
from gralora_diffusion.data.sample_prompts import SCENES
from gralora_diffusion.options import ConfigError, TrainingError, from_dict
from gralora_diffusion.sdxl.single_file import SDXL_UNET
from gralora_diffusion.training import objective
from gralora_diffusion.training import train as train_module
from gralora_diffusion.training.dry_run import plan
from gralora_diffusion.training.memory import disk_used
from gralora_diffusion.training.setup import inject_all
from gralora_diffusion.training.step_cost import step_memory
from gralora_diffusion.training.train import train

QUICK = TrainConfig(
    adapter=AdapterConfig(rank=16, k=2), max_train_steps=4, train_batch_size=4, skip_final_inference=True
)


def quick(tmp_path, name="run", **options):
    """{tensor name: tensor} of a short run's adapter."""
    run = train(dataclasses.replace(QUICK, output_dir=str(tmp_path / name), **options))
    return load_file(run / "adapter.safetensors")


def test_the_run_folder_holds_everything(finished_run):
    names = {str(p.relative_to(finished_run)) for p in finished_run.rglob("*") if p.is_file()}
    samples = {f"samples/step-{step:05d}/{i:02d}.png" for step in (0, 20) for i in range(4)}
    files = {"adapter.safetensors", "pytorch_lora_weights.safetensors", "robot.safetensors"}
    checkpoint = {
        f"checkpoint-20/{name}"
        for name in ("adapter.safetensors", "state.safetensors", "state.json", "manifest.json")
    }
    told = {
        "config.json",
        "environment.json",
        "status.json",
        "metrics.jsonl",
        "before_after.png",
        "robot.png",
        "report.html",
        ".lock",
    }
    assert names == samples | files | checkpoint | told
    config = from_dict(TrainConfig, json.loads((finished_run / "config.json").read_text()))
    assert config.adapter.rank == 16
    assert (config.learning_rate, config.text_encoder_lr, config.prediction_type) == (1e-3, None, "epsilon")
    assert (config.resolution, config.mixed_precision, config.instance_prompt) == (
        64,
        "no",
        "a photo of sks robot",
    )
    assert (
        json.loads((finished_run / "environment.json").read_text())["torch"]
        == torch.__version__.split("+")[0]
    )
    lines = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 21))
    assert all(line["loss"] > 0 and line["grad_norm"] > 0 and line["lr"] == 1e-3 for line in lines)
    facts = load_adapter(load_sdxl(), finished_run)
    assert facts["config"]["rank"] == 16
    assert facts["prompts"]["instance_prompt"] == "a photo of sks robot"


def test_samples_before_are_the_bases_and_samples_after_are_not(finished_run):
    from gralora_diffusion.sdxl.sampling import sample

    prompts = ["a photo of sks robot" + place for place in SCENES]
    base = sample(load_sdxl(), prompts, seed=3, num_inference_steps=4, guidance_scale=3.0)
    for i, image in enumerate(base):
        before, after = (
            open_image(finished_run / f"samples/step-{step:05d}/{i:02d}.png") for step in (0, 20)
        )
        assert largest(image, before) <= 2  # of 255: the prompts were embedded one by one
        assert largest(image, after) > 20


def largest(first, second) -> int:
    return max(high for _, high in ImageChops.difference(first, second).getextrema())


def test_the_same_command_gives_the_same_adapter_and_another_seed_another(tmp_path):
    first, second = quick(tmp_path, "a"), quick(tmp_path, "b")
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = quick(tmp_path, "c", seed=1)
    assert not torch.equal(first[next(iter(first))], other[next(iter(first))])


def test_accumulation_equals_the_larger_batch(tmp_path):
    whole = quick(
        tmp_path, "a", adam_epsilon=1e-3
    )  # else Adam makes a whole step of the sign of a rounding error
    parts = quick(tmp_path, "b", adam_epsilon=1e-3, train_batch_size=1, gradient_accumulation_steps=4)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=0, atol=1e-5)


def test_checkpointing_changes_memory_not_results(tmp_path):
    plain, checkpointed = (
        quick(tmp_path, name, adam_epsilon=1e-3, gradient_checkpointing=name == "b") for name in "ab"
    )
    for name in plain:
        torch.testing.assert_close(plain[name], checkpointed[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_adapters_stay_fp32_and_all_of_them_learn(tmp_path, precision):
    tensors = quick(tmp_path, mixed_precision=precision)
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert all(t.isfinite().all() and t.abs().sum() > 0 for t in tensors.values())


def test_text_encoders_learn_too(tmp_path):
    tensors = quick(tmp_path, train_text_encoder=True, text_encoder_lr=1e-3)
    for component in ("unet.", "text_encoder.", "text_encoder_2."):
        mine = [t for name, t in tensors.items() if name.startswith(component) and name.endswith("_B")]
        assert mine
        moved = [t.abs().sum() > 0 for t in mine]
        # SDXL reads the encoders' penultimate states: the last layer of the first one has no part in them
        assert sum(moved) == len(moved) - (4 if component == "text_encoder." else 0)


def test_the_vae_and_the_text_encoders_leave_memory(tmp_path, monkeypatch):
    seen = []
    real = objective.diffusion_loss

    def spy(*args, **options):
        gc.collect()
        seen.append({type(o).__name__ for o in gc.get_objects() if isinstance(o, torch.nn.Module)})
        return real(*args, **options)

    monkeypatch.setattr(objective, "diffusion_loss", spy)
    gc.collect()
    quick(tmp_path, max_train_steps=1)
    assert "UNet2DConditionModel" in seen[0]
    assert not seen[0] & {"AutoencoderKL", "CLIPTextModel", "CLIPTextModelWithProjection"}


def test_trap_6_saving_casts_no_base_and_loads_no_second_one(tmp_path, monkeypatch):
    """diffusers' script casts the whole UNet to fp32 and loads a second pipeline in order to save."""
    seen = []
    real = train_module.export

    def spy(*given):
        gc.collect()
        unets = [o for o in gc.get_objects() if type(o).__name__ == "UNet2DConditionModel"]
        seen.append((len(unets), {p.dtype for p in unets[0].parameters() if not p.requires_grad}))
        return real(*given)

    monkeypatch.setattr(train_module, "export", spy)
    gc.collect()
    quick(
        tmp_path, max_train_steps=1, mixed_precision="bf16", skip_final_inference=False, num_inference_steps=1
    )
    assert seen == [(1, {torch.bfloat16})]


def test_a_loss_that_is_not_finite_stops_the_run_and_the_last_good_state_is_kept(tmp_path):
    with pytest.raises(
        TrainingError,
        match=r"of step 2 is not finite, and the step, on \S+\.png.*was not applied.*checkpoint-1 holds",
    ):
        quick(tmp_path, learning_rate=1e30, max_grad_norm=1e30)
    assert not (tmp_path / "run" / "adapter.safetensors").exists()
    assert all(
        t.isfinite().all()
        for t in load_file(tmp_path / "run" / "checkpoint-1" / "adapter.safetensors").values()
    )
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"


@pytest.mark.parametrize("pattern", ["atn2", "unet.*attn2"])
def test_a_pattern_that_matches_nothing_is_a_mistake(pattern, tmp_path):
    with pytest.raises(ConfigError, match=f"'{re.escape(pattern)}' matches none"):
        quick(tmp_path, adapter=AdapterConfig(rank=16, rank_pattern={pattern: 8}))
    assert not list(tmp_path.iterdir())


def test_a_pattern_may_be_the_whole_path_of_a_layer():
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    adapter = AdapterConfig(rank=16, k=2, k_pattern={f"^{re.escape(path)}$": 4, "down_blocks": 1})
    models = inject_all(load_sdxl().components, TrainConfig(adapter=adapter).resolved())
    ks = {name: layer.adapter.k for name, layer in adapted_layers(models["unet"]).items()}
    assert {name for name, k in ks.items() if k == 4} == {path}
    assert {name.partition(".")[0] for name, k in ks.items() if k == 1} == {"down_blocks"}


def test_fp16_without_a_gpu_is_refused(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        quick(tmp_path, mixed_precision="fp16")
    assert not list(tmp_path.iterdir())


def test_plan_on_the_embedded_base_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = plan(TrainConfig())
    assert [layer.path for layer in made.layers] == [f"unet.{path}" for path in adapters_of_a_run()]
    parameters = 0
    for layer in adapters_of_a_run().values():
        parameters += sum(p.numel() for p in layer.adapter.parameters())
    assert made.parameters == parameters
    assert (made.steps, made.images_per_step, made.epochs) == (600, 8, 800)
    assert (made.images, made.resolution, made.source) == (6, 64, EXAMPLE)
    assert made.gradient_pass is None
    assert made.seconds_per_step is None
    text = made.text()
    assert f"{len(made.layers)} layers, {parameters:,} parameters" in text
    assert "steps: 600 of 8" in text
    assert "adapter.safetensors 4.4 MB" in text
    assert "robot-gralora-r64.safetensors 8.7 MB" in text
    assert "other tools get the adapter as an exact LoRA of rank 256" in text
    assert "4 checkpoints of 13.1 MB" in text
    assert "memory: about " in text
    assert "time" not in made.summary()
    assert not list(tmp_path.iterdir())


def test_the_plans_disk_is_what_a_run_leaves(tmp_path):
    options = dict(max_train_steps=5, checkpointing_steps=1, checkpoints_total_limit=2)
    made = plan(dataclasses.replace(QUICK, **options))
    quick(tmp_path, **options)
    checkpoints = list(tmp_path.glob("run/checkpoint-*"))
    assert len(checkpoints) == made.checkpoints == 2
    for checkpoint in checkpoints:
        assert disk_used(checkpoint) == pytest.approx(made.checkpoint_size, rel=0.1)


def adapters_of_a_run():
    from gralora_diffusion import inject

    unet = load_sdxl().unet
    inject(unet, AdapterConfig())
    return adapted_layers(unet)


def test_forecast_at_full_size():
    """SDXL at 1024 px in bf16, batch 1: 4.8 GiB of weights; checkpointing keeps far less activations."""
    config = TrainConfig(pretrained_model_name_or_path="x", train_batch_size=1)
    plain = step_memory(SDXL_UNET, config, 1024, torch.bfloat16)
    checkpointed = step_memory(
        SDXL_UNET, dataclasses.replace(config, gradient_checkpointing=True), 1024, torch.bfloat16
    )
    assert plain["weights"] == 2 * 2_567_463_684
    assert plain["adapters"] == 20 * 92_897_280  # with copies in bf16
    assert 4 * checkpointed["activations"] < plain["activations"] < 20 * 2**30


def test_the_forecast_counts_what_autograd_keeps():
    """Against the real forward pass of the embedded base, tensor by tensor."""
    config = TrainConfig(train_batch_size=4)
    unet = load_sdxl().unet.train()
    expected = step_memory(unet.config, config, 64, torch.float32, 32)["activations"]
    from gralora_diffusion import inject

    inject(unet, config.adapter)
    own, kept = {p.untyped_storage().data_ptr() for p in unet.parameters()}, {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    conditions = dict(text_embeds=torch.zeros(4, 128), time_ids=torch.zeros(4, 6))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = unet(
            torch.zeros(4, 16, 8, 8),
            torch.zeros(4).long(),
            torch.zeros(4, 32, 192),
            added_cond_kwargs=conditions,
        ).sample
    assert out.requires_grad
    assert sum(kept.values()) == expected


def test_kohyas_format_is_written_when_asked_for(tmp_path):
    quick(tmp_path, max_train_steps=1, output_kohya_format=True)
    names = {path.name for path in (tmp_path / "run").glob("*.safetensors")}
    assert names == {
        "adapter.safetensors",
        "run.safetensors",
        "pytorch_lora_weights.safetensors",
        "pytorch_lora_weights_kohya.safetensors",
    }
    assert all(
        name.startswith("lora_unet_") and "blocks_" in name
        for name in load_file(tmp_path / "run" / "pytorch_lora_weights_kohya.safetensors")
    )


def test_traps_10_and_11_the_file_for_other_tools_has_alphas_a_header_and_both_encoders_keys(tmp_path):
    """diffusers' files have neither, and ComfyUI does not know its lora_te1_encoder_layers_*."""
    quick(tmp_path, max_train_steps=1, train_text_encoder=True)
    with safe_open(tmp_path / "run" / "run.safetensors", "pt") as file:
        names, facts = set(file.keys()), file.metadata()
    layers = {name.partition(".")[0] for name in names}
    assert all(f"{layer}.alpha" in names for layer in layers)
    for encoder in ("te1", "te2"):
        mine = [layer for layer in layers if layer.startswith(f"lora_{encoder}_")]
        assert mine
        assert all(layer.startswith(f"lora_{encoder}_text_model_encoder_layers_") for layer in mine)
    assert facts["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert facts["ss_network_dim"] == facts["ss_network_alpha"] == "32"


@pytest.mark.parametrize(
    ("adapter", "said"), [(dict(rank=9), True), (dict(rank=16), False), (dict(rank=9, k=1), False)]
)
def test_blocks_that_are_none_are_said(tmp_path, capsys, adapter, said):
    quick(tmp_path, adapter=AdapterConfig(**adapter), max_train_steps=1)
    assert (
        "note: at rank 9 the rule for k gives 1, which is a plain LoRA" in capsys.readouterr().err
    ) == said
