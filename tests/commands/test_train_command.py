"""The real commands, as people type them."""

import json
import os
import re
import subprocess
import sys

import pytest
from helpers import ACCELERATE, GRALORA, SCRIPTS, TRAIN
from PIL import Image


def run(*command, cwd, **kwargs):
    return subprocess.run(
        [str(c) for c in command], cwd=cwd, capture_output=True, text=True, timeout=600, **kwargs
    )


@pytest.mark.slow
def test_accelerate_launch_from_the_scripts_folder(tmp_path):
    done = run(
        *ACCELERATE,
        "train_sdxl.py",
        "--gralora_rank",
        64,
        "--max_train_steps",
        3,
        "--num_inference_steps",
        2,
        "--output_dir",
        tmp_path / "r",
        cwd=SCRIPTS,
    )
    assert done.returncode == 0, done.stderr
    assert "56 layers, 1,089,536 parameters" in done.stdout
    assert "before_after.png" in done.stdout
    drawn = run(
        *GRALORA, "sample", "--adapter", tmp_path / "r", "--prompt", "a photo of sks robot|a dog", "--num_images", 2,
        "--num_inference_steps", 2, "--strength", 0.7, "--compare", "--output", tmp_path / "sheet.png", cwd=tmp_path,
    )  # fmt: skip
    assert drawn.returncode == 0, drawn.stderr
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 4 * 192
    assert sorted(p.name for p in (tmp_path / "sheet").iterdir()) == [
        f"{x}-{i:03d}.png" for x in ("base", "strength-0.7") for i in range(4)
    ]
    scored = run(*GRALORA, "evaluate", "--run", tmp_path / "r", cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr
    assert "step-00000" in scored.stdout
    assert "step-00003" in scored.stdout
    assert re.search(r"step-00003 +subject +4 ", scored.stdout)


def one_sentence(done, *words):
    assert done.returncode == 2, (done.returncode, done.stderr)
    lines = [line for line in done.stderr.strip().splitlines() if line.startswith("gralora train: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in lines[0] for word in words), lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gralora_ranck", "64"], ["unknown option --gralora_ranck", "did you mean '--gralora_rank'"]),
        (["--rank", "many"], ["--gralora_rank", "many"]),
        (["--learning_rat", "1"], ["unknown option --learning_rat"]),
        (["--adapter", "dora"], ["dora", "gralora"]),
        (["--instance_data_dir", "nowhere", "--instance_prompt", "x"], ["nowhere is not a folder"]),
        (["--instance_data_dir", "empty", "--instance_prompt", "x"], ["empty holds no images"]),
        (["--instance_data_dir", "broken", "--instance_prompt", "x"], ["broken.png", "not an image"]),
        (["--instance_data_dir", "texts", "--instance_prompt", "x"], ["notes.txt", "no image named notes"]),
        (["--instance_data_dir", "uncaptioned"], ["uncaptioned has no caption", "give --instance_prompt"]),
        (["--learning_rate", "-1"], ["--learning_rate is -1.0", "above 0"]),
        (["--learning_rate", "nan"], ["--learning_rate is nan", "finite"]),
        (["--adam_beta1", "2"], ["--adam_beta1 is 2.0", "at most"]),
        (["--seed", str(2**64)], ["--seed"]),
        (["--num_validation_images", "-1"], ["--num_validation_images is -1", "at least 1"]),
        (["--lr_warmup_steps", "5"], ["constant_with_warmup"]),
        (["--gralora_rank", "65536"], ["down_blocks", "rank is 65536", "from 1 to 128"]),
        (["--gralora_rank", "63", "--gralora_k", "4"], ["rank 63", "k 4", "60 and 64", "down_blocks"]),
        (["--targets", "to_nowhere"], ["'to_nowhere'", "matches no linear layer"]),
        (["--adapter", "lora", "--gralora_k", "4"], ["belong to GraLoRA"]),
        (["--resolution", "100"], ["divisible by 8"]),
        (["--pretrained_model_name_or_path", "nowhere/model"], ["nowhere/model"]),
        (["--pretrained_model_name_or_path", "model.ckpt"], ["pickle"]),
        (["--rank_pattern", "[1]"], ["not a JSON object"]),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(arguments, words, tmp_path):
    for folder in ("empty", "broken", "texts", "uncaptioned"):
        (tmp_path / folder).mkdir()
    (tmp_path / "broken" / "broken.png").write_bytes(b"nonsense")
    (tmp_path / "texts" / "notes.txt").write_text("milk")
    for folder in ("texts", "uncaptioned"):
        Image.new("RGB", (64, 64)).save(tmp_path / folder / "a.png")
    before = sorted(tmp_path.rglob("*"))
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path.parent / "hub")}
    done = run(*TRAIN, *arguments, "--output_dir", tmp_path / "out" / "run", cwd=tmp_path, env=offline)
    one_sentence(done, *words)
    assert sorted(tmp_path.rglob("*")) == before


def test_through_accelerate_a_mistake_is_still_said_and_writes_nothing(tmp_path):
    """Accelerate turns any exit code into 1 and adds its own lines; the sentence stands above them."""
    done = run(
        *ACCELERATE,
        "--quiet",
        SCRIPTS / "train_sdxl.py",
        "--gralora_ranck",
        64,
        "--output_dir",
        tmp_path / "r",
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "gralora train: unknown option --gralora_ranck; did you mean '--gralora_rank'?" in done.stderr
    assert not list(tmp_path.iterdir())


def test_num_processes_passes_mistakes_on(tmp_path):
    one_sentence(run(*TRAIN, "--num_processes", 0, cwd=tmp_path), "--num_processes is 0")
    done = run(*TRAIN, "--num_processes", 2, "--rank", 7, "--gralora_k", 2, cwd=tmp_path)
    one_sentence(done, "rank 7 is not divisible by k 2")
    assert not list(tmp_path.iterdir())


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "two_processes",
    [[*TRAIN, "--num_processes", 2], [*TORCHRUN, SCRIPTS / "train_sdxl.py"]],
    ids=["--num_processes", "torchrun"],
)
def test_two_processes_equal_one_with_twice_the_batch(two_processes, tmp_path):
    from safetensors.torch import load_file

    common = ["--gralora_rank", 16, "--max_train_steps", 3, "--skip_final_inference", "--adam_epsilon", 1e-3]
    on_cpu = os.environ | {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    here = dict(cwd=tmp_path, env=on_cpu)
    two = run(*two_processes, *common, "--train_batch_size", 2, "--output_dir", tmp_path / "two", **here)
    one = run(*TRAIN, *common, "--train_batch_size", 4, "--output_dir", tmp_path / "one", **here)
    assert two.returncode == one.returncode == 0, two.stderr + one.stderr
    assert two.stdout.count("done:") == 1
    first, second = (load_file(tmp_path / name / "adapter.safetensors") for name in ("one", "two"))
    assert max((first[k] - second[k]).abs().max() for k in first) < 1e-6
    losses = [losses_of(tmp_path / name) for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def losses_of(run_folder):
    lines = (run_folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


SHARE = """
import copy
from types import SimpleNamespace

import torch
from accelerate import Accelerator, DistributedType
from torch.distributed.fsdp import OffloadPolicy

from gralora_diffusion import AdapterConfig, inject, load_sdxl
from gralora_diffusion.injection import adapter_parameters
from gralora_diffusion.planning import inputs_of
from gralora_diffusion.sharding import shard

Accelerator()  # starts the processes' group; on CPUs it takes FSDP for plain data parallelism
unet = load_sdxl().unet
inject(unet, AdapterConfig(rank=8, k=2))
torch.manual_seed(0)
for parameter in adapter_parameters(unet).values():
    parameter.data.normal_(std=0.05)
whole, frozen = copy.deepcopy(unet), sum(p.numel() for p in unet.parameters() if not p.requires_grad)
plugin = SimpleNamespace(reshard_after_forward=True, cpu_offload=OffloadPolicy())
shard(unet, SimpleNamespace(distributed_type=DistributedType.FSDP, state=SimpleNamespace(fsdp_plugin=plugin)))
inputs, conditions = inputs_of(unet.config, 1, 8, 77)
inputs[0].normal_()
for model in (unet, whole):
    model(*inputs, added_cond_kwargs=conditions).sample.square().sum().backward()
here = sum(p.to_local().numel() for p in unet.parameters() if hasattr(p, "to_local"))
pairs = zip(adapter_parameters(unet).values(), adapter_parameters(whole).values(), strict=True)
same = all((a.grad - b.grad).norm() <= 1e-5 * b.grad.norm() for a, b in pairs)
print(f"share {here / frozen:.2f} {same}\\n", end="", flush=True)
"""


@pytest.mark.slow
def test_sharded_each_process_keeps_a_part_of_the_base_and_the_gradients_are_the_same(tmp_path):
    (tmp_path / "share.py").write_text(SHARE)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    done = run(
        *torchrun, tmp_path / "share.py", cwd=tmp_path, env=os.environ | {"ACCELERATE_USE_CPU": "true"}
    )
    assert done.stdout.splitlines() == ["share 0.50 True"] * 2, done.stderr


def test_fsdp_that_accelerate_ignores_is_refused(tmp_path):
    asked = os.environ | {"ACCELERATE_USE_CPU": "true", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    done = run(*TRAIN, "--output_dir", tmp_path / "run", cwd=tmp_path, env=asked)
    assert done.returncode == 2
    assert "accelerate is set up for FSDP, and makes" in done.stderr
    assert not (tmp_path / "run").exists()


def test_dry_run_prints_the_plan(tmp_path):
    done = run(*TRAIN, "--dry_run", "--rank", 32, "--train_text_encoder", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '"rank": 32' in done.stdout
    assert "mid_block.attentions.0.transformer_blocks.0.attn2.to_k" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--help", "--gralora_rank"),
        ("--gralora_ranks", "--gralora_rank"),
        ("--instance_data_dir=nowhere", "nowhere is not a folder"),
        ("--pretrained_model_name_or_path=/nowhere/model", "/nowhere/model"),
    ],
)
def test_help_and_mistakes_do_not_load_torch(option, words, tmp_path):
    (tmp_path / "probe.py").write_text(
        "import sys\n"
        "from gralora_diffusion.cli.main import main\n"
        "try:\n    main(['train', sys.argv[1]])\n"
        "except SystemExit:\n    print('torch' in sys.modules)\n"
    )
    done = run(sys.executable, tmp_path / "probe.py", option, cwd=tmp_path)
    assert done.stdout.strip().endswith("False"), done.stderr
    assert words in done.stdout + done.stderr


def test_the_package_loads_neither_gradio_nor_open_clip(tmp_path):
    probe = "import sys, gralora_diffusion, gralora_diffusion.training.train, gralora_diffusion.training.dry_run; print(*sys.modules)"
    loaded = run(sys.executable, "-c", probe, cwd=tmp_path).stdout.split()
    assert {"torch", "gralora_diffusion.training.train"} <= set(loaded)
    assert not {"gradio", "open_clip"} & set(loaded)
    bare = run(
        sys.executable, "-c", "import sys, gralora_diffusion; print(*sys.modules)", cwd=tmp_path
    ).stdout.split()
    assert "gralora_diffusion" in bare
    assert not {"gradio", "open_clip", "torch", "diffusers"} & set(bare)


DIFFUSERS_FLAGS = """--pretrained_model_name_or_path --pretrained_vae_model_name_or_path --revision --variant --cache_dir --dataset_name
--dataset_config_name --instance_data_dir --image_column --caption_column --repeats --instance_prompt --resolution --center_crop
--random_flip --image_interpolation_mode --dataloader_num_workers --with_prior_preservation --class_data_dir --class_prompt
--prior_loss_weight --num_class_images --sample_batch_size --prior_generation_precision --validation_prompt
--num_validation_images --validation_epochs --seed --train_batch_size --num_train_epochs --max_train_steps
--gradient_accumulation_steps --gradient_checkpointing --train_text_encoder --snr_gamma --mixed_precision --allow_tf32
--learning_rate --text_encoder_lr --scale_lr --lr_scheduler --lr_warmup_steps --lr_num_cycles --lr_power --optimizer
--use_8bit_adam --adam_beta1 --adam_beta2 --adam_weight_decay --adam_epsilon --max_grad_norm --prodigy_beta3 --prodigy_decouple
--prodigy_use_bias_correction --prodigy_safeguard_warmup --lora_dropout --output_dir --output_kohya_format --checkpointing_steps
--checkpoints_total_limit --resume_from_checkpoint --logging_dir --report_to --push_to_hub --hub_token --hub_model_id --rank
--lora_alpha --cache_latents --use_aspect_ratio_buckets --caption_dropout --upcast_before_saving --skip_final_inference"""


def test_every_flag_of_diffusers_trainer_is_an_option():
    from gralora_diffusion.command_line import Parser, add_options
    from gralora_diffusion.config import TrainConfig

    parser = Parser()
    add_options(parser, TrainConfig)
    assert set(DIFFUSERS_FLAGS.split()) <= parser._option_string_actions.keys()


@pytest.mark.slow
def test_a_command_line_written_for_diffusers_runs_unchanged(tmp_path):
    """Its README's DreamBooth command, with the embedded base's size and steps, leaves the files that its users expect."""
    from diffusers import StableDiffusionXLPipeline

    from gralora_diffusion.data.dataset import EXAMPLE
    from gralora_diffusion.sdxl.load import EMBEDDED

    done = run(
        *ACCELERATE, SCRIPTS / "train_sdxl.py", f"--pretrained_model_name_or_path={EMBEDDED}", f"--instance_data_dir={EXAMPLE}",
        "--output_dir=lora-trained-xl", "--mixed_precision=no", "--instance_prompt=a photo of sks robot", "--resolution=64", "--train_batch_size=1",
        "--gradient_accumulation_steps=2", "--learning_rate=1e-4", "--report_to=tensorboard", "--lr_scheduler=constant", "--lr_warmup_steps=0",
        "--max_train_steps=4", "--validation_prompt=A photo of sks robot in a bucket", "--validation_epochs=1", "--seed=0", "--rank=8",
        "--checkpointing_steps=2", "--checkpoints_total_limit=1", "--train_text_encoder", "--num_validation_images=2", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    out = tmp_path / "lora-trained-xl"
    assert [p.name for p in out.glob("checkpoint-*")] == ["checkpoint-4"]
    assert list((out / "logs").rglob("events*"))
    assert sorted(p.name for p in (out / "samples").iterdir()) == ["step-00000", "step-00003", "step-00004"]
    pipeline = StableDiffusionXLPipeline.from_pretrained(EMBEDDED)
    pipeline.load_lora_weights(out)
    assert pipeline.get_list_adapters() == {
        name: ["default_0"] for name in ("unet", "text_encoder", "text_encoder_2")
    }
