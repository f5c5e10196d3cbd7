"""What goes wrong on the way: memory, disks, numbers, networks; and what is asked of a run that is done."""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from gralora_diffusion import AdapterConfig, TrainConfig, inject, load_sdxl
from gralora_diffusion.adapters.gora import by_block
from gralora_diffusion.adapters.gradients import Gradients
from gralora_diffusion.cli.main import main
from gralora_diffusion.command_line import Parser, parse
from gralora_diffusion.console import duration
from gralora_diffusion.data import class_images as prior
from gralora_diffusion.formats.adapter_state import Adapter
from gralora_diffusion.options import ConfigError, TrainingError
from gralora_diffusion.training import checkpoint as checkpoints
from gralora_diffusion.training import hub, loop, objective, step_cost, validation_images
from gralora_diffusion.training.dry_run import plan
from gralora_diffusion.training.forecast import RunCost, forecast_run
from gralora_diffusion.training.memory import out_of_memory
from gralora_diffusion.training.optimization import Optimization
from gralora_diffusion.training.resume import check_facts, facts_of
from gralora_diffusion.training.run_folder import Run, busy, read_metrics, read_status
from gralora_diffusion.training.setup import set_up
from gralora_diffusion.training.sharding import check_sharding
from gralora_diffusion.training.signals import Stopped
from gralora_diffusion.training.train import train

SMALL = AdapterConfig(rank=8, k=2, targets=r"mid_block.*attn1\.to_q")
QUICK = TrainConfig(adapter=SMALL, max_train_steps=3, train_batch_size=2, skip_final_inference=True)


def quick(tmp_path, **options) -> Path:
    return train(dataclasses.replace(QUICK, output_dir=str(tmp_path / "run"), **options))


def failing_loss(monkeypatch, at: int, fail):
    """The `at`-th loss goes through fail()."""
    real, count = objective.diffusion_loss, []

    def loss(*args, **options):
        count.append(1)
        value = real(*args, **options)
        return fail(value) if len(count) == at else value

    monkeypatch.setattr(objective, "diffusion_loss", loss)


def no_memory(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("at", "words"), [(1, "out of memory before the first step: "), (6, r"out of memory at step \d: ")]
)
def test_out_of_memory_says_what_to_lower(tmp_path, monkeypatch, at, words):
    failing_loss(monkeypatch, at, no_memory)
    with pytest.raises(
        TrainingError,
        match=words
        + "add --gradient_checkpointing, use --mixed_precision bf16, use --train_batch_size 1 with",
    ):
        quick(tmp_path)
    assert read_status(tmp_path / "run")["state"] == "failed"


def test_out_of_memory_names_no_option_that_would_be_refused():
    offloaded = dataclasses.replace(QUICK, offload_unet=True, gradient_checkpointing=True)
    assert "--base_model_precision" in str(out_of_memory("here", QUICK))
    assert "--base_model_precision" not in str(out_of_memory("here", offloaded))


def test_out_of_memory_in_a_preview_costs_the_images_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(validation_images, "generate", no_memory)
    with pytest.warns(UserWarning, match="out of memory for the sample images of step"):
        run = quick(tmp_path, skip_final_inference=False)
    assert (run / "adapter.safetensors").exists()
    assert read_status(run)["state"] == "done"


def test_out_of_memory_while_weights_are_averaged_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "averaged", no_memory)
    with pytest.raises(TrainingError, match="out of memory for the sample images of step 1: "):
        quick(tmp_path, skip_final_inference=False, validation_steps=1, num_inference_steps=1)


def test_a_sample_of_a_single_color_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(
        validation_images,
        "generate",
        lambda _, wanted, *__, **___: [Image.new("RGB", (64, 64)) for _ in wanted],
    )
    with pytest.warns(UserWarning, match="has a single color") as caught:
        quick(tmp_path, skip_final_inference=False)
    assert any("image 0 of step 3 has" in str(warning.message) for warning in caught)


def test_a_gradient_that_is_not_finite_is_not_applied(tmp_path, monkeypatch):
    failing_loss(
        monkeypatch, 3 + 2, lambda loss: loss + (loss - loss.detach()) * 1e38 * 1e38
    )  # three batches tell the time; then the second step
    with pytest.raises(
        TrainingError,
        match=r"the gradient of step 2 is not finite.*00?\d\.png.*checkpoint-1 holds the last good state",
    ):
        quick(tmp_path)
    assert all(
        t.isfinite().all()
        for t in load_file(tmp_path / "run" / "checkpoint-1" / "adapter.safetensors").values()
    )


def test_an_adapter_with_nan_is_not_exported(tmp_path, monkeypatch):
    real = loop.use_average

    def spoiled(optimizer, ema):
        real(optimizer, ema)
        optimizer.param_groups[0]["params"][0].data[0] = float("nan")

    monkeypatch.setattr(loop, "use_average", spoiled)
    with pytest.raises(TrainingError, match=r"the adapter cannot be exported: .* not finite"):
        quick(tmp_path)
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_a_checkpoint_with_nan_is_not_written_and_nothing_is_left_of_it(tmp_path):
    unet = load_sdxl().unet
    inject(unet, SMALL)
    adapter = Adapter.from_models({"unet": unet})
    checkpoints.save(tmp_path, 1, adapter, {})
    next(iter(next(adapter.items())[2].values()))[0] = float("nan")
    with pytest.raises(
        TrainingError,
        match=r"checkpoint-2 was not written, since a number is not finite .*: use a lower --learning",
    ):
        checkpoints.save(tmp_path, 2, adapter, {})
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]


@pytest.fixture(scope="module")
def checkpointed(tmp_path_factory):
    return quick(tmp_path_factory.mktemp("checkpointed"), checkpointing_steps=1)


@pytest.mark.parametrize("name", ["adapter.safetensors", "state.safetensors", "state.json", "manifest.json"])
def test_a_checkpoint_of_zeros_is_passed_over(checkpointed, tmp_path, name):
    run = shutil.copytree(checkpointed, tmp_path / "run")
    path = run / "checkpoint-3" / name
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.warns(UserWarning, match="checkpoint-3 is skipped"):
        assert checkpoints.newest(run).name == "checkpoint-2"


def test_a_clock_set_back_changes_nothing(checkpointed, tmp_path):
    """The newest checkpoint is that of the highest step, whatever the files' dates say."""
    run = shutil.copytree(checkpointed, tmp_path / "run")
    for step in (2, 3):
        for path in (run / f"checkpoint-{step}").iterdir():
            os.utime(path, (step * 1e9 - 2e9, 3e9 - step * 1e9))
    assert checkpoints.newest(run).name == "checkpoint-3"


def test_files_have_the_rights_that_the_user_wants(tmp_path):
    before = os.umask(0o027)
    try:
        run = quick(tmp_path, max_train_steps=1)
    finally:
        os.umask(before)
    modes = {
        p.name: oct(p.stat().st_mode & 0o777) for p in run.rglob("*") if p.is_file() and p.name != ".lock"
    }
    assert set(modes.values()) == {"0o640"}, modes


def test_a_log_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Run, "log", full)
    with pytest.raises(
        TrainingError,
        match=r"metrics\.jsonl cannot be written .*; run the same command to resume from the newest",
    ):
        quick(tmp_path)


def test_last_words_that_cannot_be_written_do_not_hide_what_happened(tmp_path, monkeypatch):
    real = Run.status

    def full(self, state, **facts):
        if state == "failed":
            raise OSError(28, "No space left on device")
        real(self, state, **facts)

    monkeypatch.setattr(Run, "status", full)
    failing_loss(monkeypatch, 6, no_memory)
    with pytest.raises(TrainingError, match="out of memory at step"):
        quick(tmp_path)


def test_a_run_that_failed_says_its_last_step(tmp_path, monkeypatch):
    failing_loss(monkeypatch, 5, no_memory)
    with pytest.raises(TrainingError):
        quick(tmp_path)
    assert read_status(tmp_path / "run")["step"] == len(read_metrics(tmp_path / "run")) == 1


def test_other_frozen_models_or_another_noise_schedule_are_refused(tmp_path):
    run = quick(tmp_path, max_train_steps=1)
    job = set_up(dataclasses.replace(QUICK, output_dir=str(run)).resolved())
    for name, words in dict(
        others="a different VAE or different text encoders",
        noise="a different noise schedule",
        base="a different base",
    ).items():
        other = job.facts | dict(must_match=job.facts["must_match"] | {name: "other"})
        with pytest.raises(ConfigError, match=words):
            check_facts(run / "checkpoint-1", job.facts, other)
    older = {name: job.facts[name] for name in ("must_match", "should_match")}
    with pytest.raises(ConfigError, match="was written by another version"):
        check_facts(run / "checkpoint-1", older, job.facts)
    job.pipeline.vae.decoder.conv_in.weight.data[0] += 1
    job.pipeline.scheduler.alphas_cumprod[0] -= 0.1
    changed = facts_of(job.pipeline, job.images, [], None, job.accelerator)["must_match"]
    assert {name for name, value in changed.items() if job.facts["must_match"][name] != value} == {
        "others",
        "noise",
    }


def test_a_checkpoint_of_an_older_version_is_refused_in_one_sentence(tmp_path):
    facts = dict(must_match={}, should_match={})
    with pytest.raises(ConfigError, match="checkpoint-3 was written by another version of gralora_diffusion"):
        check_facts(tmp_path / "checkpoint-3", dict(same={}, like={}), facts)


def test_repeats_count_when_a_warm_up_is_compared_with_the_run(tmp_path):
    """Six images ten times, two a step, are 30 steps."""
    options = dict(
        max_train_steps=None, num_train_epochs=1, lr_scheduler="constant_with_warmup", lr_warmup_steps=20
    )
    assert (
        set_up(
            dataclasses.replace(QUICK, output_dir=str(tmp_path / "run"), repeats=10, **options).resolved()
        ).steps
        == 30
    )
    with pytest.raises(ConfigError, match="the run ends after 3 steps"):
        set_up(dataclasses.replace(QUICK, output_dir=str(tmp_path / "run"), **options).resolved())


def test_class_images_of_other_steps_or_guidance_are_others():
    config = TrainConfig(guidance_scale=5.0)
    marks = {
        prior.fingerprint_of(dataclasses.replace(config, **other), torch.float32)
        for other in ({}, dict(num_inference_steps=9), dict(guidance_scale=3.0))
    }
    assert len(marks) == 3


def test_a_layer_without_a_gradient_has_sums_of_the_right_shape():
    """SDXL reads the text encoders' penultimate states: a last layer has no part in the loss."""
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 16))
    layers = inject(model, AdapterConfig(rank=4, k=2, targets="all-linear"))
    accelerator = SimpleNamespace(scaler=None, num_processes=1, process_index=0)
    gradients = Gradients(
        layers, lambda i: model[0](torch.full((1, 16), 1.0 + i % 3)).square().mean(), accelerator, 2
    )
    sums = gradients.projected(
        {path: by_block(layer.adapter.gralora_A.detach()) for path, layer in layers.items()}
    )
    assert {path: tuple(s.shape) for path, s in sums.items()} == {"0": (2, 2, 16, 2), "1": (2, 2, 8, 2)}
    assert sums["0"].abs().sum() > 0
    assert sums["1"].abs().sum() == 0


def test_a_look_whether_a_folder_is_free_does_not_keep_a_run_from_it(tmp_path):
    run = Run(tmp_path / "run")
    run.lock.release()
    look = FileLock(tmp_path / "run" / ".lock", thread_local=False)
    look.acquire()
    threading.Timer(0.3, look.release).start()
    Run(tmp_path / "run").lock.release()  # waits for it
    look.acquire()
    threading.Timer(0.05, look.release).start()
    assert not busy(tmp_path / "run")  # another look is no run
    look.acquire()
    assert busy(tmp_path / "run")
    look.release()


# the hub and its token


def offline(monkeypatch, error: str):
    def refuse(*_, **__):
        raise OSError(error)

    for name in ("whoami", "create_repo"):
        monkeypatch.setattr(f"huggingface_hub.HfApi.{name}", refuse)


def test_a_token_is_in_no_message_and_on_no_command_line(monkeypatch, tmp_path, finished_run):
    monkeypatch.setattr(sys, "argv", ["train_sdxl.py", "--hub_token", "hf_secret", "--hub_token=hf_secret"])
    config = parse("")
    assert config.hub_token == "hf_secret"
    assert "hf_secret" not in " ".join(sys.argv)
    offline(monkeypatch, "the header 'Bearer hf_secret' was refused\nmore")
    with pytest.raises(ConfigError, match=r"the header 'Bearer \*\*\*' was refused; log in") as caught:
        hub.check_hub(dataclasses.replace(config, push_to_hub=True), tmp_path / "run")
    with pytest.raises(
        TrainingError,
        match=r"is complete, but it could not be uploaded as .*: the header 'Bearer \*\*\*' was refused$",
    ) as late:
        hub.push(shutil.copytree(finished_run, tmp_path / "finished"), config)
    assert "hf_secret" not in str(caught.value) + str(late.value)


def test_a_run_that_is_done_is_exported_and_uploaded_again_without_training(tmp_path, monkeypatch, capsys):
    run = quick(tmp_path, ema_decay=0.5)
    kept = {name: (run / name).read_bytes() for name in ("adapter.safetensors", "metrics.jsonl")}
    exported = load_file(run / f"{run.name}.safetensors")
    uploads = []
    monkeypatch.setattr(
        "gralora_diffusion.training.train.push",
        lambda path, _: uploads.append(path) or "https://example.org/x",
    )
    monkeypatch.setattr("gralora_diffusion.training.setup.check_hub", lambda *_: None)
    quick(tmp_path, ema_decay=0.5, output_kohya_format=True, push_to_hub=True, num_inference_steps=7)
    told = capsys.readouterr()
    assert "nothing was trained; its files for other tools were written again" in told.out
    assert "--num_inference_steps can no longer change its images" in told.err
    assert "uploaded: https://example.org/x" in told.out
    assert uploads == [run]
    assert load_file(run / "pytorch_lora_weights_kohya.safetensors")
    assert {name: (run / name).read_bytes() for name in kept} == kept
    written = load_file(
        run / f"{run.name}.safetensors"
    )  # the moving average, which is in no checkpoint as an adapter
    assert written.keys() == exported.keys()
    assert all(torch.equal(written[name], exported[name]) for name in exported)
    assert json.loads((run / "config.json").read_text())["output_kohya_format"] is True
    assert read_status(run)["state"] == "done"
    quick(tmp_path, ema_decay=0.5, output_kohya_format=True)
    assert "written again" not in capsys.readouterr().out


def test_an_upload_that_fails_leaves_a_run_that_is_done(tmp_path, monkeypatch):
    offline(monkeypatch, "no network")
    monkeypatch.setattr("gralora_diffusion.training.setup.check_hub", lambda *_: None)
    with pytest.raises(TrainingError, match="is complete, but it could not be uploaded as run: no network"):
        quick(tmp_path, push_to_hub=True)
    assert read_status(tmp_path / "run")["state"] == "done"


# accelerate set up for what cannot be

NO_IMAGES = TrainConfig(skip_final_inference=True)


@pytest.mark.parametrize(
    ("kind", "version", "config", "words"),
    [
        ("DEEPSPEED", None, NO_IMAGES, "but only FSDP 2 can shard a base"),
        ("FSDP", 1, NO_IMAGES, "but only FSDP 2 can shard a base"),
        ("FSDP", 2, TrainConfig(), "needs --skip_final_inference"),
        (
            "FSDP",
            2,
            dataclasses.replace(NO_IMAGES, base_model_precision="int8-torchao"),
            "a base that is not quantized",
        ),
        ("FSDP", 2, dataclasses.replace(NO_IMAGES, allocate="gora").resolved(), "without --allocate"),
        ("FSDP", 2, NO_IMAGES, None),
        ("MULTI_GPU", None, TrainConfig(), None),
    ],
)
def test_ways_to_shard_a_base_that_are_refused(kind, version, config, words):
    plugin = SimpleNamespace(fsdp_version=version)
    accelerator = SimpleNamespace(
        distributed_type=DistributedType[kind], state=SimpleNamespace(fsdp_plugin=plugin)
    )
    with pytest.raises(ConfigError, match=words) if words else contextlib.nullcontext():
        check_sharding(config, accelerator)


# words


def test_an_unknown_option_like_no_other_points_to_the_help(capsys):
    with pytest.raises(SystemExit):
        Parser().parse_args(["--zzz", "1"])
    assert "unknown option --zzz; --help lists all options" in capsys.readouterr().err


def test_options_of_other_tools_for_an_adapter_s_strength_are_known(capsys):
    for name in ("lora_scale", "lora_weight", "network_mul"):
        with pytest.raises(SystemExit):
            main(["sample", f"--{name}", "0.5", "--prompt", "x"])
        assert f"unknown option --{name}: --strength is its name here" in capsys.readouterr().err


def test_ctrl_c_while_the_libraries_load_is_one_sentence(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("gralora_diffusion.cli.train.parser_of", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(["train"])
    assert stop.value.code == 130
    assert (
        capsys.readouterr().err == "gralora train: stopped before the first step; nothing is lost: "
        "run the same command to start again\n"
    )


def test_a_forecast_in_words():
    cost = RunCost(seconds=61.4, memory=2**31, disk=1_234_500_000)
    assert cost.text() == "about 1 min 1 s, 2.0 GiB of memory, 1,234 MB on disk"
    assert cost.to_json() == dict(seconds=61.4, memory_mb=2147.483648, disk_mb=1234.5)
    assert duration(7384) == "2 h 3 min"


# the forecast of time


def test_time_is_measured_on_more_batches_the_longer_the_run():
    calls = []
    seconds = step_cost.batch_time(lambda i: (calls.append(i), time.sleep(0.01)), 3, torch.device("cpu"))
    assert calls == [0, 1, 2]
    assert seconds >= 0.01
    calls.clear()
    step_cost.batch_time(lambda i: (calls.append(i), time.sleep(0.001)), 10**6, torch.device("cpu"))
    assert calls == list(range(11))


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(
            adapter=AdapterConfig(rank=8),
            train_text_encoder=True,
            mixed_precision="bf16",
            gradient_checkpointing=True,
        ),
    ],
)
def test_a_dry_run_tries_a_step_out_and_writes_nothing(tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    made = plan(dataclasses.replace(QUICK, **options), timed=True)
    assert made.seconds_per_step > 0
    assert ", plus caching the dataset\n" in made.text()  # and no sample images, which QUICK skips
    with_images = dataclasses.replace(made, config=TrainConfig())
    assert ", plus sample images and caching the dataset\n" in with_images.text()
    assert not list(tmp_path.iterdir())


def test_a_large_base_is_not_tried_out_on_a_cpu(monkeypatch):
    monkeypatch.setattr(step_cost, "LARGE", 1000)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    made = plan(QUICK, timed=True)
    assert made.seconds_per_step is None
    assert "time: not measured: a base of this size takes long on a CPU" in made.text()


def test_every_image_on_the_way_is_in_the_forecast(tmp_path):
    """Six images, two a step: a pass of three steps."""
    options = dict(skip_final_inference=False, max_train_steps=9, validation_epochs=1, num_inference_steps=1)
    job = set_up(dataclasses.replace(QUICK, output_dir=str(tmp_path / "run"), **options).resolved())
    folder = tmp_path / "none"
    drawn = SimpleNamespace(seconds=1000.0, of_step=lambda step: folder, memory=lambda in_use: in_use)
    adapters = job.models["unet"]

    def loss_of(_):
        return sum(p.sum() for p in adapters.parameters() if p.requires_grad)

    (tmp_path / "run").mkdir()
    # after steps 3, 6 and 9
    forecast = forecast_run(job, Optimization.of(job), loss_of, drawn)
    assert forecast.seconds == pytest.approx(3000, rel=0.01)


def test_ctrl_c_while_an_adapter_is_uploaded_says_that_it_is_there(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("gralora_diffusion.training.setup.check_hub", lambda *_: None)  # no network here
    monkeypatch.setattr("gralora_diffusion.training.train.push", interrupted)
    with pytest.raises(
        Stopped,
        match=r"stopped after training; the adapter is in \S+/run; for what is left to do, run",
    ):
        quick(tmp_path, push_to_hub=True)
    assert read_status(tmp_path / "run")["state"] == "done"
    uploaded = []
    monkeypatch.setattr("gralora_diffusion.training.train.push", lambda run, config: uploaded.append(run))
    monkeypatch.setattr("gralora_diffusion.training.train.run_training", None)  # nothing is trained again
    assert [quick(tmp_path, push_to_hub=True)] == uploaded


def test_disk_is_forecast_with_checkpoints_images_and_every_file(tmp_path):
    options = dict(
        max_train_steps=6,
        checkpointing_steps=2,
        checkpoints_total_limit=2,
        ema_decay=0.9,
        output_kohya_format=True,
    )
    run = quick(
        tmp_path,
        adapter=AdapterConfig(rank=16),
        skip_final_inference=False,
        num_inference_steps=1,
        validation_steps=3,
        **options,
    )
    status = json.loads((run / "status.json").read_text())
    assert status["actual"]["disk_mb"] == pytest.approx(status["forecast"]["disk_mb"], rel=0.2)


def test_the_peak_of_memory_is_not_that_of_the_process_that_started_it():
    held = bytearray(os.urandom(1 << 20)) * 1500
    code = "import torch; from gralora_diffusion.devices import peak_memory"
    code += "; print(peak_memory(torch.device('cpu')))"
    peak = int(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )
    assert 5e7 < peak < len(held)
