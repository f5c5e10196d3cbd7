"""gralora train and what follows it, as people type it."""

import re

import pytest
from helpers import ACCELERATE, GRALORA, SCRIPTS, TRAIN
from PIL import Image
from run_command import call, run


@pytest.mark.slow
def test_accelerate_launch_then_sample_and_evaluate(tmp_path):
    options = ["--gralora_rank", 64, "--max_train_steps", 3, "--num_inference_steps", 2]
    done = run(*ACCELERATE, "train_sdxl.py", *options, "--output_dir", tmp_path / "r", cwd=SCRIPTS)
    assert done.returncode == 0, done.stderr
    assert "56 layers, 1,089,536 parameters" in done.stdout
    assert "before_after.png" in done.stdout
    sheet = tmp_path / "sheet.png"
    options = ["--prompt", "a photo of sks robot|a dog", "--num_images", 2, "--num_inference_steps", 2]
    options += ["--strength", 0.7, "--compare", "--output", sheet]
    sampled = call("sample", "--adapter", tmp_path / "r", *options, cwd=tmp_path)
    assert sampled.returncode == 0, sampled.stderr
    with Image.open(sheet) as image:
        assert image.width > 4 * 192
    names = [f"{row}-{i:03d}.png" for row in ("base", "strength-0.7") for i in range(4)]
    assert sorted(path.name for path in (tmp_path / "sheet").iterdir()) == names
    scored = run(*GRALORA, "evaluate", "--run", tmp_path / "r", cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr
    assert "step-00000" in scored.stdout
    assert "step-00003" in scored.stdout
    assert re.search(r"step-00003 +subject +4 ", scored.stdout)


EMBEDDED = (
    "the embedded one (64 x 64 pixels), which cannot learn photos and whose adapters do not fit SDXL; "
    "--pretrained_model_name_or_path selects another"
)
A_LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


def test_dry_run_prints_the_plan(tmp_path):
    done = call("train", "--dry_run", "--rank", 32, "--train_text_encoder", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first = [line.partition(":")[0] for line in done.stdout.splitlines()]
    whole = ["base", "adapter", "images", "captions", "sample prompts", "steps", "device", "memory"]
    assert first == [*whole, "memory of a training step", "time", "disk", "images from", "run folder"]
    assert "adapter: gralora of rank 32, k 2, " in done.stdout
    assert A_LAYER not in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_verbose_dry_run_lists_the_layers_after_the_summary(tmp_path):
    done = run(*TRAIN, "--dry_run", "--verbose", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"base: {EMBEDDED}\nadapter: gralora of rank ")
    assert '"rank": 64' in done.stdout
    assert len(re.findall(r"^unet[.].*[0-9] -> [0-9]", done.stdout, re.M)) == 56
    assert A_LAYER in done.stdout


DIFFUSERS_FLAGS = """
--pretrained_model_name_or_path --pretrained_vae_model_name_or_path --revision --variant --cache_dir
--dataset_name --dataset_config_name --instance_data_dir --image_column --caption_column --repeats
--instance_prompt --resolution --center_crop --random_flip --image_interpolation_mode --dataloader_num_workers
--with_prior_preservation --class_data_dir --class_prompt --prior_loss_weight --num_class_images
--sample_batch_size --prior_generation_precision --validation_prompt --num_validation_images
--validation_epochs --seed --train_batch_size --num_train_epochs --max_train_steps
--gradient_accumulation_steps --gradient_checkpointing --train_text_encoder --snr_gamma --mixed_precision
--allow_tf32 --learning_rate --text_encoder_lr --scale_lr --lr_scheduler --lr_warmup_steps --lr_num_cycles
--lr_power --optimizer --use_8bit_adam --adam_beta1 --adam_beta2 --adam_weight_decay --adam_epsilon
--max_grad_norm --prodigy_beta3 --prodigy_decouple --prodigy_use_bias_correction --prodigy_safeguard_warmup
--lora_dropout --output_dir --output_kohya_format --checkpointing_steps --checkpoints_total_limit
--resume_from_checkpoint --logging_dir --report_to --push_to_hub --hub_token --hub_model_id --rank
--lora_alpha --cache_latents --use_aspect_ratio_buckets --caption_dropout --upcast_before_saving
--skip_final_inference
"""


def test_every_flag_of_diffusers_trainer_is_an_option():
    from gralora_diffusion.command_line import Parser, add_options
    from gralora_diffusion.config import TrainConfig

    parser = Parser()
    add_options(parser, TrainConfig)
    assert set(DIFFUSERS_FLAGS.split()) <= parser._option_string_actions.keys()


@pytest.mark.slow
def test_a_command_line_written_for_diffusers_runs_unchanged(tmp_path):
    """Its README's DreamBooth command, with the embedded base, writes the files that its users expect."""
    from diffusers import StableDiffusionXLPipeline

    from gralora_diffusion.data.dataset import EXAMPLE
    from gralora_diffusion.sdxl.load import EMBEDDED

    options = dict(
        pretrained_model_name_or_path=EMBEDDED,
        instance_data_dir=EXAMPLE,
        output_dir="lora-trained-xl",
        mixed_precision="no",
        instance_prompt="a photo of sks robot",
        resolution=64,
        train_batch_size=1,
        gradient_accumulation_steps=2,
        learning_rate="1e-4",
        report_to="tensorboard",
        lr_scheduler="constant",
        lr_warmup_steps=0,
        max_train_steps=4,
        validation_prompt="A photo of sks robot in a bucket",
        validation_epochs=1,
        seed=0,
        rank=8,
        checkpointing_steps=2,
        checkpoints_total_limit=1,
        num_validation_images=2,
    )
    flags = [f"--{name}={value}" for name, value in options.items()]
    command = [*ACCELERATE, SCRIPTS / "train_sdxl.py", *flags, "--train_text_encoder"]
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "lora-trained-xl"
    assert [p.name for p in out.glob("checkpoint-*")] == ["checkpoint-4"]
    assert list((out / "logs").rglob("events*"))
    assert sorted(p.name for p in (out / "samples").iterdir()) == ["step-00000", "step-00003", "step-00004"]
    pipeline = StableDiffusionXLPipeline.from_pretrained(EMBEDDED)
    pipeline.load_lora_weights(out)
    models = ("unet", "text_encoder", "text_encoder_2")
    assert pipeline.get_list_adapters() == {name: ["default_0"] for name in models}
