"""Held-out images, evaluations, and the step that is kept: exact, the same after a kill, refused if wrong."""

import dataclasses
import json
import os
import shutil

import pytest
import torch
from helpers import TRAIN
from PIL import Image
from run_command import run as run_command
from safetensors.torch import load_file

from gralora_diffusion import AdapterConfig, TrainConfig, load_sdxl
from gralora_diffusion.data import dataset
from gralora_diffusion.data.dataset import EXAMPLE, instance_images
from gralora_diffusion.data.held_out import hold_out
from gralora_diffusion.data.image_folder import find_images
from gralora_diffusion.data.images import crops_of
from gralora_diffusion.options import ConfigError, TrainingError
from gralora_diffusion.sdxl.base import encode_images, encode_prompts, predict
from gralora_diffusion.training import checkpoint as checkpoints
from gralora_diffusion.training.best import best_of, is_exhausted, score_of
from gralora_diffusion.training.dry_run import plan
from gralora_diffusion.training.evaluations import Evaluations
from gralora_diffusion.training.hub import write_card
from gralora_diffusion.training.preview_scores import PreviewScores, encoder_names
from gralora_diffusion.training.run_folder import (
    public_options,
    read_evaluations,
    read_metrics,
    read_status,
)
from gralora_diffusion.training.train import train
from gralora_diffusion.training.validation_images import Previews
from gralora_diffusion.training.validation_loss import TIMES, ValidationLoss, draw_stratified

QUICK = TrainConfig(
    adapter=AdapterConfig(rank=8, k=2),
    max_train_steps=4,
    train_batch_size=2,
    skip_final_inference=True,
    learning_rate=1e-3,
    checkpointing_steps=1,
)
LOSS = dict(validation_split=0.3, keep_best="loss", validation_steps=1)


def quick(folder, **options):
    return train(dataclasses.replace(QUICK, output_dir=str(folder), **options))


def weights(path):
    return load_file(path / "adapter.safetensors")


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def losses(monkeypatch):
    """Sets what the held-out images' loss is at each evaluation, by how often it was measured."""

    def set_to(*values):
        left = list(values)
        monkeypatch.setattr(ValidationLoss, "measure", lambda self: left.pop(0))

    return set_to


def test_the_split_depends_on_content_and_seed_alone(tmp_path):
    config = TrainConfig(validation_split=0.3)
    images = instance_images(config)
    kept, held_out = hold_out(config, images)
    assert len(held_out) == 2
    assert sorted(map(id, kept + held_out)) == sorted(map(id, images))
    names = {image.digest: f"{9 - number}.png" for number, image in enumerate(images)}
    for image in images:
        shutil.copy(image.path, tmp_path / names[image.digest])
    moved = TrainConfig(validation_split=0.3, instance_data_dir=str(tmp_path), instance_prompt="a robot")
    again = hold_out(moved, instance_images(moved))[1]
    assert {image.digest for image in again} == {image.digest for image in held_out}
    chosen = set()
    for seed in range(8):
        chosen.add(frozenset(i.digest for i in hold_out(dataclasses.replace(config, seed=seed), images)[1]))
    assert len(chosen) > 1
    assert len(hold_out(TrainConfig(validation_split=1e-6), images)[1]) == 1


def test_copies_of_one_image_are_on_one_side(tmp_path):
    for number, path in enumerate(sorted(EXAMPLE.glob("*.png")) * 2):
        shutil.copy(path, tmp_path / f"{number}.png")
    config = TrainConfig(validation_split=0.5, instance_data_dir=str(tmp_path), instance_prompt="a robot")
    kept, held_out = hold_out(config, instance_images(config))
    assert len(held_out) == 6
    assert not {image.digest for image in kept} & {image.digest for image in held_out}


def test_a_concept_without_training_images_is_refused(tmp_path):
    for name, number in (("1_a", 0), ("1_b", 1)):
        (tmp_path / name).mkdir()
        shutil.copy(sorted(EXAMPLE.glob("*.png"))[number], tmp_path / name)
    config = TrainConfig(validation_split=0.1, instance_data_dir=str(tmp_path))
    with pytest.raises(ConfigError, match=r"0\.1 leaves a concept without training images"):
        hold_out(config, instance_images(config))


def test_a_held_out_folder_is_read_and_shares_no_image(tmp_path):
    files = sorted(EXAMPLE.glob("*.png"))
    for side, members in (("train", files[:4]), ("held", files[4:])):
        (tmp_path / side).mkdir()
        for path in members:
            shutil.copy(path, tmp_path / side)
    (tmp_path / "held" / f"{files[4].stem}.txt").write_text("a photo of sks robot, held out")
    config = TrainConfig(
        instance_data_dir=str(tmp_path / "train"),
        instance_prompt="a photo of sks robot",
        validation_dir=str(tmp_path / "held"),
    )
    kept, held_out = hold_out(config, instance_images(config))
    assert len(kept) == 4
    assert [image.caption for image in held_out] == ["a photo of sks robot, held out", "a photo of sks robot"]
    shutil.copy(files[0], tmp_path / "held" / "again.png")
    with pytest.raises(ConfigError, match=r"again\.png is the same image as 00\.png, which is trained on"):
        hold_out(config, instance_images(config))


def test_timesteps_are_one_of_each_part_and_the_same_again():
    first, second = (draw_stratified((4, 8, 8), 1000, 3, 77) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert (first[2] * TIMES // 1000).tolist() == list(range(TIMES))
    assert not torch.equal(first[1], draw_stratified((4, 8, 8), 1000, 4, 77)[1])


def test_the_loss_is_the_plain_error_of_the_prediction_on_every_held_out_image(tmp_path):
    """Against the formula, image by image, at step 0, where the adapter changes nothing."""
    run = quick(tmp_path / "run", max_train_steps=1, validation_split=0.3, snr_gamma=5.0, loss_type="huber")
    measured = read_evaluations(run)[0]["validation_loss"]
    pipeline = load_sdxl()
    config = TrainConfig(validation_split=0.3, center_crop=True)
    errors = []
    for image in hold_out(config, instance_images(config))[1]:
        key = int(image.digest[:12], 16)
        (pixels, ids), *rest = crops_of(image.open(), (64, 64), True, False, "lanczos", key)
        assert not rest
        with torch.no_grad():
            mean, std = encode_images(pipeline.vae, pixels[None])[0]
            posterior, noise, timesteps = draw_stratified(mean.shape, 1000, 0, key)
            latents = (mean + std * posterior[0]).expand(TIMES, *mean.shape)
            a = pipeline.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
            noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
            prompts = encode_prompts(pipeline, [image.caption] * TIMES)
            sizes = ids.expand(TIMES, 6)
            predicted = predict(pipeline.unet, noisy, timesteps, prompts, sizes)
        errors.append((predicted - noise).square().mean().item())
    assert measured == pytest.approx(sum(errors) / len(errors), rel=1e-5)


@pytest.mark.parametrize("background", [0.0, 0.25])
def test_masks_weigh_the_held_out_images_as_in_training(tmp_path, background):
    """At step 0, on a folder with masks beside the images, against the weighted mean of each image."""
    photos, held_out = tmp_path / "photos", tmp_path / "held_out"
    for folder, numbers in ((photos, range(4)), (held_out, (4, 5))):
        folder.mkdir()
        for number in numbers:
            image = Image.open(EXAMPLE / f"{number:02}.png").convert("RGB")
            image.save(folder / f"{number}.png")
            mask = Image.new("L", image.size)
            mask.paste(255, (0, 0, image.width // 2, image.height))
            if number != 5:  # which counts whole
                mask.save(folder / f"{number}-masklabel.png")
    options = dict(
        instance_data_dir=str(photos),
        instance_prompt="a photo of sks robot",
        validation_dir=str(held_out),
        masked_loss=True,
        mask_background_weight=background,
    )
    run = quick(tmp_path / "run", max_train_steps=1, **options)
    measured = read_evaluations(run)[0]["validation_loss"]
    pipeline = load_sdxl()
    errors = []
    for number in (4, 5):
        (image,) = [p for p in find_images(held_out, "a photo of sks robot") if p.path.stem == str(number)]
        key = int(image.digest[:12], 16)
        ((pixels, ids),) = crops_of(image.open(), (64, 64), True, False, "lanczos", key)
        with torch.no_grad():
            mean, std = encode_images(pipeline.vae, pixels[None])[0]
            posterior, noise, timesteps = draw_stratified(mean.shape, 1000, 0, key)
            latents = (mean + std * posterior[0]).expand(TIMES, *mean.shape)
            a = pipeline.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
            noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
            prompts = encode_prompts(pipeline, [image.caption] * TIMES)
            predicted = predict(pipeline.unet, noisy, timesteps, prompts, ids.expand(TIMES, 6))
        squares = (predicted - noise).square().mean((0, 1))
        weights = torch.full_like(squares, background)
        weights[:, : squares.shape[1] // 2] = 1
        weights = torch.ones_like(squares) if number == 5 else weights
        errors.append(((weights * squares).sum() / weights.sum()).item())
    assert measured == pytest.approx(sum(errors) / 2, rel=1e-4)


def test_evaluations_change_nothing_of_the_training(tmp_path):
    """With dropout and EMA, whose state an evaluation must leave as it was."""
    files = sorted(EXAMPLE.glob("*.png"))
    for side, members in (("train", files[:4]), ("held", files[4:])):
        (tmp_path / side).mkdir()
        for path in members:
            shutil.copy(path, tmp_path / side)
    common = dict(
        adapter=AdapterConfig(rank=8, k=2, dropout=0.1),
        ema_decay=0.9,
        instance_data_dir=str(tmp_path / "train"),
        instance_prompt="a photo of sks robot",
    )
    plain = quick(tmp_path / "plain", **common)
    looked = quick(
        tmp_path / "looked",
        validation_dir=str(tmp_path / "held"),
        keep_best="loss",
        validation_steps=1,
        **common,
    )
    assert [line["loss"] for line in read_metrics(plain)] == [line["loss"] for line in read_metrics(looked)]
    assert same(weights(plain / "checkpoint-4"), weights(looked / "checkpoint-4"))
    assert len(read_evaluations(looked)) == 5
    assert not (plain / "evaluations.jsonl").exists()


def test_dropout_is_off_and_the_average_is_evaluated(tmp_path):
    options = dict(adapter=AdapterConfig(rank=8, k=2, dropout=0.9), ema_decay=0.9, **LOSS)
    run = quick(tmp_path / "run", **options)
    found = [line["validation_loss"] for line in read_evaluations(run)]
    assert len(set(found)) == 5
    again = quick(tmp_path / "again", **(options | dict(train_batch_size=2, max_train_steps=4)))
    assert [line["validation_loss"] for line in read_evaluations(again)] == found


def test_the_best_step_is_exported_and_the_last_is_a_checkpoint(tmp_path, losses, capsys):
    losses(9.0, 3.0, 1.0, 2.0, 4.0)
    run = quick(tmp_path / "run", **LOSS)
    assert same(weights(run), weights(run / "checkpoint-2"))
    assert same(weights(run), weights(run / "checkpoint-best"))
    assert not same(weights(run), weights(run / "checkpoint-4"))
    printed = capsys.readouterr().out
    assert "best: step 2, whose validation loss is 1.0000; step 0 has 9.0000, step 4 has 4.0000" in printed
    assert "1.0000" not in (run / "report.html").read_text()  # as the table rounds it
    assert "best: 2" in (run / "report.html").read_text()


def test_the_best_is_the_average_where_there_is_one(tmp_path, losses):
    losses(9.0, 3.0, 1.0, 2.0, 4.0)
    run = quick(tmp_path / "run", ema_decay=0.9, **LOSS)
    losses(9.0, 3.0, 1.0)
    short = quick(tmp_path / "short", ema_decay=0.9, max_train_steps=2, **LOSS)
    assert same(weights(run), weights(short))
    assert not same(weights(run), weights(run / "checkpoint-2"))


def test_the_limit_of_checkpoints_keeps_the_best(tmp_path, losses):
    losses(9.0, 1.0, 2.0, 2.0, 2.0)
    run = quick(tmp_path / "run", checkpoints_total_limit=1, **LOSS)
    assert sorted(p.name for p in run.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-best"]
    assert not same(weights(run), weights(run / "checkpoint-4"))


def test_patience_ends_the_run_and_the_same_command_finds_it_done(tmp_path, losses, capsys):
    losses(9.0, 1.0, 2.0, 2.0)
    options = dict(max_train_steps=9, patience=2, **LOSS)
    run = quick(tmp_path / "run", **options)
    assert read_status(run)["state"] == "done"
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 3]
    out, bar = capsys.readouterr()
    assert "stopped after step 3 by --patience; best: step 1" in out
    assert "| 3/9, " in bar.strip().split("\r")[-1]
    assert " left" not in bar.strip().split("\r")[-1]
    quick(tmp_path / "run", **options)
    out = capsys.readouterr().out
    assert "was already finished" in out
    assert "raise --patience to train it further" in out
    losses(0.5, *[2.0] * 5)
    quick(tmp_path / "run", **options | dict(patience=3))  # more patience goes on where it stopped
    assert [line["step"] for line in read_metrics(run)] == list(range(1, 8))
    assert same(weights(run), weights(run / "checkpoint-4"))


def test_a_dry_run_knows_what_patience_and_a_stop_have_left(tmp_path, losses):
    losses(9.0, 1.0, 2.0, 2.0)
    options = dict(max_train_steps=9, patience=2, **LOSS)
    run = quick(tmp_path / "run", **options)

    def planned(**more) -> dict[str, str]:
        made = plan(dataclasses.replace(QUICK, output_dir=str(run), **options | more), timed=True)
        return made.summary() | {"run folder": made.run_text()}

    assert planned()["run folder"] == f"{run} (finished: no step is left)"
    assert not {"time", "evaluations"} & set(planned())
    more = planned(patience=3)  # which is a run that goes on, with the evaluations of steps 4 to 9
    assert more["run folder"].endswith("the run resumes from checkpoint-3)")
    assert more["evaluations"].startswith("6, on ")
    assert " for 6, plus" in more["time"]
    with open(run / "evaluations.jsonl", "a") as file:
        file.write('{"step": 3, "validation_loss": "low"}\n')  # which is no number
        file.write('{"step": 4, "validation_loss": 0.5}\n')  # after the checkpoint, so made again
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | dict(state="stopped")))  # before its files were made
    assert planned()["run folder"] == f"{run} (no step is left: the same command writes the files)"


def test_a_run_whose_patience_ends_at_its_last_step_needs_more_of_both(tmp_path, losses, capsys):
    losses(9.0, 1.0, 2.0, 2.0)
    options = dict(max_train_steps=3, patience=2, **LOSS)
    run = quick(tmp_path / "run", **options)
    quick(run, **options)
    assert "raise --max_train_steps and --patience to train it further" in capsys.readouterr().out
    for option in (dict(max_train_steps=4), dict(patience=3)):  # one alone trains nothing
        quick(run, **options | option)
        assert "was already finished" in capsys.readouterr().out
    losses(0.5)
    quick(run, **options | dict(max_train_steps=4, patience=3))
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 3, 4]


@pytest.mark.parametrize("killed", [1, 2, 3, 4])
def test_a_kill_between_evaluation_and_checkpoint_changes_nothing(tmp_path, monkeypatch, killed):
    values = {0: 9.0, 1: 1.0, 2: 0.5, 3: 2.0, 4: 3.0}
    steps_seen = []
    real_add, real_save = Evaluations.add, checkpoints.save

    def add(self, step):
        steps_seen.append(step)
        assert (self.best is None) == (not (self.setup.path / "checkpoint-best").exists())
        return real_add(self, step)

    monkeypatch.setattr(Evaluations, "add", add)
    monkeypatch.setattr(ValidationLoss, "measure", lambda self: values[steps_seen[-1]])
    whole = quick(tmp_path / "whole", **LOSS)

    def save(run, step, *rest):
        if step == killed:
            raise KeyboardInterrupt
        return real_save(run, step, *rest)

    monkeypatch.setattr(checkpoints, "save", save)
    with pytest.raises(KeyboardInterrupt):
        quick(tmp_path / "run", **LOSS)
    assert len(read_evaluations(tmp_path / "run")) == killed + 1  # the kill was after the evaluation
    monkeypatch.setattr(checkpoints, "save", real_save)
    run = quick(tmp_path / "run", **LOSS)
    assert read_evaluations(run) == read_evaluations(whole)
    assert same(weights(run), weights(whole))
    assert same(weights(run / "checkpoint-best"), weights(whole / "checkpoint-best"))
    assert same(weights(run / "checkpoint-4"), weights(whole / "checkpoint-4"))
    assert same(weights(whole), weights(whole / "checkpoint-2"))


def test_a_real_run_with_scores_resumes_to_the_same(tmp_path):
    options = dict(
        validation_split=0.3,
        keep_best="score",
        validation_steps=1,
        skip_final_inference=False,
        num_inference_steps=2,
        adapter=AdapterConfig(rank=8, k=2, tlora=True, dropout=0.1),
        ema_decay=0.9,
    )
    whole = quick(tmp_path / "run", **options)
    history, exported = read_evaluations(whole), weights(whole)
    lines = read_metrics(whole)
    assert all(
        {"subject", "prompt", "copy", "copies", "score", "validation_loss"} <= line.keys() for line in history
    )
    assert history[0]["score"] == 0
    for step in (3, 4):
        shutil.rmtree(whole / f"checkpoint-{step}")
    status = whole / "status.json"
    status.write_text(json.dumps(json.loads(status.read_text()) | dict(state="stopped")))
    again = quick(tmp_path / "run", **options)
    assert read_evaluations(again) == history
    assert same(weights(again), exported)
    assert [line["loss"] for line in read_metrics(again)] == [line["loss"] for line in lines]
    with pytest.raises(ConfigError, match="different prompts or settings of the sample images"):
        quick(tmp_path / "run", **options | dict(num_inference_steps=3, max_train_steps=5))


def test_other_held_out_images_are_refused_at_a_resume(tmp_path):
    files = sorted(EXAMPLE.glob("*.png"))
    held = tmp_path / "held"
    held.mkdir()
    for path in files[:2]:
        image = held / path.name
        image.write_bytes(path.read_bytes() + b" ")  # another content of the same pixels
    options = dict(validation_dir=str(held), validation_steps=2)
    quick(tmp_path / "run", **options)
    (held / files[0].name).unlink()
    with pytest.raises(ConfigError, match="was made with different held-out images"):
        quick(tmp_path / "run", **options | dict(max_train_steps=5))


@pytest.mark.slow
def test_two_processes_evaluate_what_one_does_and_agree(tmp_path):
    common = ["--gralora_rank", 8, "--max_train_steps", 3, "--adam_epsilon", 1e-3, "--validation_split", 0.3]
    common += ["--validation_steps", 1, "--keep_best", "score", "--num_inference_steps", 2, "--patience", 9]
    on_cpu = os.environ | {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    runs = {}
    for name, words in (
        ("one", ["--train_batch_size", 4]),
        ("two", ["--train_batch_size", 2, "--num_processes", 2]),
    ):
        runs[name] = tmp_path / name
        done = run_command(*TRAIN, *common, *words, "--output_dir", runs[name], cwd=tmp_path, env=on_cpu)
        assert done.returncode == 0, done.stderr
    one, two = (read_evaluations(runs[name]) for name in ("one", "two"))
    assert [line["step"] for line in one] == [line["step"] for line in two] == [0, 1, 2, 3]
    for first, second in zip(one, two, strict=True):
        assert first["validation_loss"] == pytest.approx(second["validation_loss"], abs=1e-5)


def test_the_score_is_what_was_learned_less_what_was_lost():
    base = dict(subject=0.4, prompt=0.8)
    assert score_of(base, base) == 0
    assert score_of(dict(subject=0.6, prompt=0.9), base) == pytest.approx(
        0.2
    )  # more than the base is no gain
    assert score_of(dict(subject=0.6, prompt=0.4), base) == pytest.approx(0.2 / 4)
    assert score_of(dict(subject=0.3, prompt=0.1), base) == pytest.approx(
        -0.1
    )  # a low prompt excuses nothing
    assert score_of(dict(subject=0.6, prompt=-0.1), base) == 0
    assert score_of(dict(subject=0.6), base) is None
    assert score_of(dict(subject=0.6, prompt=0.4), dict(subject=0.4, prompt=0.0)) is None


def test_the_best_is_the_first_of_equals_and_never_step_0_or_one_that_was_not_measured():
    history = [
        dict(step=0, score=9.0),
        dict(step=1, score=None),
        dict(step=2, score=0.5),
        dict(step=3, score=0.5),
    ]
    assert best_of(history, "score")["step"] == 2
    assert best_of(history[:2], "score") is None
    config = TrainConfig(keep_best="score", validation_steps=1, patience=2)
    assert not is_exhausted(history, config)
    assert is_exhausted([*history, dict(step=4, score=None)], config)
    assert is_exhausted(history[:1] + [dict(step=step) for step in (1, 2)], config)


def test_images_that_cannot_be_scored_are_no_candidates(tmp_path, monkeypatch):
    real = PreviewScores.measure

    def measure(self, folder):
        if folder.name == "step-00002":
            next(folder.glob("*.png")).unlink()
        return real(self, folder)

    monkeypatch.setattr(PreviewScores, "measure", measure)
    options = dict(score_encoders="embedded", skip_final_inference=False, num_inference_steps=1)
    with pytest.warns(UserWarning, match=r"step 2 are not scored: .* holds 3 of 4"):
        run = quick(tmp_path / "run", keep_best="score", validation_steps=1, **options)
    assert [line["score"] is None for line in read_evaluations(run)] == [False, False, True, False, False]
    monkeypatch.setattr(PreviewScores, "measure", lambda self, folder: {"subject": 0.5})
    with pytest.raises(TrainingError, match="sample images of step 0 could not be scored"):
        quick(tmp_path / "other", keep_best="score", validation_steps=1, **options)


@pytest.mark.parametrize(
    ("options", "option", "words"),
    [
        (dict(validation_split=0.1, validation_dir="x"), "validation_split", "give one of them"),
        (dict(keep_best="loss", validation_steps=5), "keep_best", "--keep_best loss needs held-out images"),
        (
            dict(keep_best="loss", validation_split=0.1),
            "keep_best",
            "it needs --validation_steps or --validation_epochs",
        ),
        (
            dict(keep_best="score", validation_steps=5, skip_final_inference=True),
            "keep_best",
            "drop --skip_final",
        ),
        (dict(score_encoders="auto", skip_final_inference=True), "score_encoders", "drop --skip_final"),
        (dict(patience=3), "patience", "it needs --keep_best"),
        (dict(validation_split=0.95), "validation_split", "at most 0.9"),
    ],
)
def test_contradictions_are_refused(options, option, words):
    with pytest.raises(ConfigError, match=words) as caught:
        TrainConfig(**options)
    assert caught.value.option == option


def test_wrong_encoders_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="--score_encoders is 'clop'") as caught:
        quick(tmp_path / "run", score_encoders="clop", skip_final_inference=False)
    assert caught.value.option == "score_encoders"
    options = dict(keep_best="score", validation_steps=1, skip_final_inference=False)
    with pytest.raises(ConfigError, match="needs an encoder that reads prompts"):
        quick(tmp_path / "run", score_encoders="imagenet", **options)
    with pytest.raises(ConfigError, match=r"^--score_encoders dinov2:\./nowhere cannot be loaded"):
        quick(tmp_path / "run", score_encoders="dinov2:./nowhere", skip_final_inference=False)
    with pytest.raises(ConfigError, match="is empty"):
        plan(TrainConfig(score_encoders=" , "))
    assert not (tmp_path / "run").exists()
    assert encoder_names(TrainConfig(score_encoders="embedded, embedded,imagenet")) == [
        "embedded",
        "imagenet",
    ]
    assert encoder_names(TrainConfig()) == []


def test_the_dry_run_counts_held_out_images_evaluations_and_the_best(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(validation_split=0.3, keep_best="loss", validation_steps=50, max_train_steps=120)
    made = plan(config)
    assert (made.images, made.held_out, made.evaluations) == (4, 2, 4)
    assert "evaluations: 4, on 2 held-out images" in made.text()
    plain = plan(dataclasses.replace(config, keep_best=None, validation_split=0.0))
    numbers = plain.files["adapter.safetensors"] // 4
    assert made.checkpoint_size - plain.checkpoint_size == pytest.approx(4 * numbers, rel=0.01)
    assert made.files["checkpoint-best/adapter.safetensors"] == plain.files["adapter.safetensors"]
    assert "evaluations" not in plain.text()


def test_the_card_shows_the_images_of_the_step_that_was_exported(tmp_path, losses):
    losses(9.0, 2.0, 1.0, 3.0, 4.0)
    options = dict(skip_final_inference=False, validation_prompt="a robot", num_inference_steps=1)
    run = quick(tmp_path / "run", **options, **LOSS)
    write_card(run)
    assert "url: samples/step-00002/00.png" in (run / "README.md").read_text()


def test_encoders_are_published_without_their_folders():
    names = "clip:ViT-B-32:/home/me/secret/clip.safetensors, dinov2:/home/me/dino,imagenet"
    shown = public_options(dict(score_encoders=f"{names},dinov2:facebook/dinov2-base"))
    assert shown == dict(
        score_encoders="clip:ViT-B-32:clip.safetensors, dinov2:dino,imagenet,dinov2:facebook/dinov2-base"
    )


def test_sample_images_are_in_order_of_number(tmp_path):
    options = dict(validation_prompt="a robot", num_validation_images=101, num_inference_steps=1)
    previews = Previews(load_sdxl(), dataclasses.replace(QUICK, **options).resolved(), tmp_path)
    images = [Image.effect_noise((8, 8), 50).convert("RGB")] * 101
    previews.images = lambda *_: images
    previews.generate(0)
    names = [path.stem for path in sorted(previews.of_step(0).iterdir())]
    assert names == [f"{number:03d}" for number in range(101)]


def test_the_folder_of_class_images_is_not_listed_at_every_step(tmp_path, monkeypatch):
    folder = tmp_path / "class"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "black.png")
    listed = []
    numbered = dataset.numbered
    monkeypatch.setattr(dataset, "numbered", lambda path: listed.append(path) or numbered(path))
    prior = dict(class_data_dir=str(folder), class_prompt="a robot", num_class_images=1)
    counts = []
    for steps in (2, 6):
        listed.clear()
        options = dict(with_prior_preservation=True, max_train_steps=steps, checkpointing_steps=9)
        quick(tmp_path / str(steps), **options, **prior, validation_split=0.3, validation_steps=9)
        counts.append(len(listed))
    assert counts[0] == counts[1]
