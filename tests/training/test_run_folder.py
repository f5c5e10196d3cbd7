"""A run that is interrupted in any way resumes exactly, and no other run is touched."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from helpers import SCRIPTS, TRAIN
from safetensors.torch import load_file

from gralora_diffusion import AdapterConfig, TrainConfig
from gralora_diffusion.console import clock_time, duration
from gralora_diffusion.data.dataset import EXAMPLE
from gralora_diffusion.options import ConfigError, TrainingError
from gralora_diffusion.training import checkpoint as checkpoints
from gralora_diffusion.training.dry_run import plan
from gralora_diffusion.training.report_charts import loss_chart
from gralora_diffusion.training.run_folder import Run, read_metrics, read_status, wall_seconds
from gralora_diffusion.training.run_time import RunTime
from gralora_diffusion.training.setup import checkpoint_interval
from gralora_diffusion.training.signals import Stopped
from gralora_diffusion.training.train import train
from gralora_diffusion.ui.run_view import time_left

SMALL = AdapterConfig(rank=8, k=2, dropout=0.1)
QUICK = TrainConfig(
    adapter=SMALL,
    max_train_steps=5,
    train_batch_size=2,
    gradient_accumulation_steps=2,
    skip_final_inference=True,
)


def learned(run: Path) -> dict:
    return load_file(run / "adapter.safetensors")


def equal(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return train(
        dataclasses.replace(
            QUICK, output_dir=str(tmp_path_factory.mktemp("unbroken") / "run"), checkpointing_steps=1
        )
    )


@pytest.fixture
def broken(unbroken, tmp_path):
    """The same run as a kill after step 3 would leave it, in a folder of its own."""
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    for name in ("checkpoint-4", "checkpoint-5"):
        shutil.rmtree(run / name)
    for path in run.glob("*.safetensors"):
        path.unlink()
    (run / "status.json").write_text('{"state": "running", "pid": 1}')
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(lines[:4]) + "\n" + lines[4][:20])
    return run


def again(run: Path, **options) -> Path:
    return train(dataclasses.replace(QUICK, output_dir=str(run), **options))


def test_trap_3_resumed_at_every_step_it_is_bit_equal(unbroken, tmp_path):
    """With accumulation, dropout, and six images that four per step do not divide."""
    for steps in range(1, 6):
        again(tmp_path / "run", max_train_steps=steps)
    assert equal(learned(tmp_path / "run"), learned(unbroken))
    assert exact_metrics(tmp_path / "run") == exact_metrics(unbroken)


def test_the_report_of_a_resumed_run_covers_the_whole_run(tmp_path):
    run = tmp_path / "run"
    again(run, max_train_steps=3)
    lines = read_metrics(run)
    slow = [line | dict(seconds=1000.0, memory=2**50) for line in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in slow))
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | dict(seconds=5000.0)))
    again(run)
    status = json.loads((run / "status.json").read_text())
    for cost in (status["forecast"], status["actual"]):
        assert 5000 < cost["seconds"] < 5600
        assert cost["memory_mb"] == 2**50 / 1e6
    taken = status["actual"]["seconds"]
    assert taken == pytest.approx(status["seconds"], abs=0.001)  # the time of the card
    report = (run / "report.html").read_text()
    assert f"5 steps. The run took {duration(taken)}, of which the steps took 50 min" in report
    assert f"<td>{duration(taken)}</td>" in report


def test_the_time_of_a_killed_run_has_its_last_steps_and_counts_for_the_resumed_one(broken):
    lines = [line | dict(seconds=100.0) for line in read_metrics(broken)]
    (broken / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    killed = dict(state="running", pid=1, seconds=50.0, step=1)
    (broken / "status.json").write_text(json.dumps(killed))
    assert wall_seconds(killed, lines) == 350  # and the steps 2, 3 and 4
    assert wall_seconds(killed | dict(state="stopped"), lines) == 50
    assert wall_seconds(dict(state="done"), lines) is None  # of an earlier version
    again(broken)
    assert 350 < json.loads((broken / "status.json").read_text())["seconds"] < 500


@pytest.mark.parametrize("text", ["[]", "null", "7", "{}", '{"state": 7, "pid": "x", "seconds": []}'])
def test_a_status_that_no_run_wrote_does_not_end_a_resume(broken, unbroken, text):
    (broken / "status.json").write_text(text)
    assert read_status(broken)["state"] == "unknown"
    again(broken)
    assert equal(learned(broken), learned(unbroken))


@pytest.mark.parametrize(
    "text", ["[]\n", "7\n", "{}\n", '{"step": "1", "seconds": 1}\n', '{"step": 1}\n', "[" * 9999]
)
def test_metrics_that_no_run_wrote_do_not_end_a_resume(broken, unbroken, text):
    (broken / "metrics.jsonl").write_text(text)
    again(broken)
    assert equal(learned(broken), learned(unbroken))


def test_measured_costs_outlive_a_stop_before_the_first_step(broken, monkeypatch):
    costs = dict(preparation=7.0, images=3.0)
    (broken / "status.json").write_text(json.dumps(dict(state="stopped", step=3, costs=costs)))

    def stop(*_):
        raise Stopped("stopped")

    monkeypatch.setattr("gralora_diffusion.training.train.run_training", stop)
    with pytest.raises(Stopped):
        again(broken)
    assert json.loads((broken / "status.json").read_text())["costs"] == costs


def test_log_and_page_have_the_same_time_left_and_say_what_the_run_does(tmp_path, capsys, monkeypatch):
    """What the page would show is found at each moment that the run writes down, and after each step."""
    seen, shown = [], []
    write, step_ended = Run.status, RunTime.add_step

    def status(run, *values, **facts):
        write(run, *values, **facts)
        found = json.loads((run.path / "status.json").read_text())
        assert found == json.loads(json.dumps(run.recorded))
        seen.append(found.get("doing"))

    def add_step(clock, step, seconds):
        text = step_ended(clock, step, seconds)
        speeds = [line["seconds"] for line in read_metrics(clock.run.path)] + [seconds]
        found = json.loads((clock.run.path / "status.json").read_text())
        left = time_left(found | dict(state="running"), step, sum(speeds) / len(speeds))
        shown.append((text.split(" elapsed, ")[1].split(" left, ")[0], clock_time(left)))
        return text

    monkeypatch.setattr(Run, "status", status)
    monkeypatch.setattr(RunTime, "add_step", add_step)
    options = dict(skip_final_inference=False, validation_steps=2, num_inference_steps=2)
    run = again(tmp_path / "run", **options, validation_prompt="a robot | a dog", train_batch_size=1)
    assert len(shown) == 5
    assert all(log == page for log, page in shown), shown
    assert [doing for doing in seen if doing][:2] == ["encoding the dataset", "sample image 1 of 2"]
    series = [doing for doing in seen if doing and doing.startswith("sample image ")]
    assert series == ["sample image 1 of 2", "sample image 2 of 2"] * 4  # steps 0, 2, 4 and 5
    for doing in ("measuring a step", "saving a checkpoint", "exporting", "writing the report"):
        assert seen.count(doing) == 1, doing
    assert seen[-1] == ""
    out, bar = capsys.readouterr()
    assert " left, " in bar
    assert " left" not in bar.strip().split("\r")[-1]  # which stays in the log
    status = json.loads((run / "status.json").read_text())
    assert f"time: {duration(status['seconds'])}, of which the steps took " in out
    assert status["costs"]["images"] > 0
    assert status["costs"]["export"] > 0
    estimate = duration(status["forecast"]["seconds"])
    assert f"estimate: about {estimate}, " in out
    assert f"<td>{estimate}</td>" in (run / "report.html").read_text()
    assert status["looked"] == 5


def test_a_finished_run_is_reported_done_once_and_as_finished(tmp_path, capsys):
    again(tmp_path / "run")
    assert capsys.readouterr().out.count("done: ") == 1
    again(tmp_path / "run")
    (line,) = capsys.readouterr().out.strip().splitlines()
    assert line.startswith(f"done: {tmp_path / 'run'} was already finished, and nothing was trained")


def test_a_finished_run_of_epochs_goes_on_with_more_epochs(tmp_path, capsys):
    options = dict(max_train_steps=None, num_train_epochs=1)
    again(tmp_path / "run", **options)
    again(tmp_path / "run", **options)
    assert "raise --num_train_epochs to train it further" in capsys.readouterr().out
    again(tmp_path / "run", **options | dict(num_train_epochs=2))
    assert "already finished" not in capsys.readouterr().out


def test_a_finished_run_is_not_told_to_take_more_steps_where_its_schedule_depends_on_them(tmp_path, capsys):
    options = dict(lr_scheduler="cosine")
    again(tmp_path / "run", **options)
    again(tmp_path / "run", **options)
    out = capsys.readouterr().out
    assert "a longer run needs another --output_dir, since --lr_scheduler depends on the number of" in out
    assert "raise" not in out
    with pytest.raises(ConfigError, match="choose another --output_dir"):
        again(tmp_path / "run", **options | dict(max_train_steps=6))
    again(tmp_path / "longer", **options | dict(max_train_steps=6))
    assert "already finished" not in capsys.readouterr().out


def test_checkpoints_are_a_quarter_of_the_run_apart_unless_the_interval_is_given():
    steps = (5, 100, 300, 600, 2000, 9000)
    assert [checkpoint_interval(QUICK, n) for n in steps] == [50, 50, 75, 150, 500, 500]
    assert checkpoint_interval(dataclasses.replace(QUICK, checkpointing_steps=7), 300) == 7


def test_a_run_whose_config_names_the_old_default_resumes(tmp_path, unbroken):
    """Older versions wrote checkpointing_steps 500 into config.json."""
    run = again(tmp_path / "run", max_train_steps=3)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | dict(checkpointing_steps=500)))
    assert equal(learned(again(run)), learned(unbroken))


def test_a_dry_run_on_a_stopped_run_counts_the_steps_that_are_left(broken, unbroken, tmp_path):
    made = plan(dataclasses.replace(QUICK, output_dir=str(broken)), timed=True)
    assert (made.start, made.steps) == (3, 5)
    text = made.text()
    assert ", 3 of them done\n" in text
    assert f" {duration(2 * made.seconds_per_step)} for 2, plus" in text
    assert f"run folder: {broken} (with the same images and base, the run resumes from checkpoint-3)" in text
    finished = plan(dataclasses.replace(QUICK, output_dir=str(unbroken)))
    assert f"run folder: {unbroken} (finished: no step is left)" in finished.text()
    with pytest.raises(ConfigError, match=r"is at step 3 already, beyond the 2 steps of this command"):
        plan(dataclasses.replace(QUICK, output_dir=str(broken), max_train_steps=2))
    new = plan(dataclasses.replace(QUICK, output_dir=str(tmp_path / "new")))
    assert f"run folder: {tmp_path}/new (not created in a dry run)" in new.text()


def test_the_smoothed_loss_of_a_resumed_run_goes_on_and_is_that_of_the_report(broken, capsys):
    again(broken)
    last = capsys.readouterr().err.strip().split("\r")[-1]
    assert "| 5/5, " in last
    in_report = loss_chart(read_metrics(broken))["readings"][-1]["text"].rpartition("smoothed ")[2]
    assert float(last.rpartition("smoothed loss ")[2]) == pytest.approx(float(in_report), abs=1e-4)


def exact_metrics(run: Path) -> list[tuple]:
    """What a resumed run repeats: all of a line but its time and memory."""
    return [(line["step"], line["loss"], line["lr"], line["grad_norm"]) for line in read_metrics(run)]


def test_a_killed_run_goes_on_and_its_leftovers_go(broken, unbroken):
    assert read_status(broken)["state"] == "killed"
    shutil.copytree(broken / "checkpoint-3", broken / ".checkpoint-4.part")
    shutil.copytree(broken / "checkpoint-3", broken / ".checkpoint-2.del")
    (broken / ".adapter.safetensors.99.part").write_bytes(b"half")
    again(broken)
    assert equal(learned(broken), learned(unbroken))
    assert not [p for p in broken.rglob(".*") if p.name != ".lock"]
    assert [line["step"] for line in read_metrics(broken)] == [1, 2, 3, 4, 5]
    assert read_status(broken)["state"] == "done"


@pytest.mark.parametrize("name", ["adapter.safetensors", "state.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["truncated", "flipped", "gone"])
def test_a_damaged_checkpoint_is_passed_over(broken, name, harm):
    path = broken / "checkpoint-3" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(data if harm == "flipped" else data[: len(data) // 2])
    named = (
        contextlib.nullcontext()
        if (name, harm) == ("manifest.json", "gone")
        else pytest.warns(UserWarning, match="checkpoint-3 is skipped")
    )
    with named:
        assert checkpoints.newest(broken).name == "checkpoint-2"
    with pytest.raises(ConfigError, match="cannot resume from"):
        checkpoints.load(broken / "checkpoint-3")


def test_a_damaged_checkpoint_costs_steps_and_nothing_else(broken, unbroken):
    (broken / "checkpoint-3" / "state.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"the content of state\.safetensors has changed"):
        again(broken)
    assert equal(learned(broken), learned(unbroken))


def test_foreign_folders_that_are_named_like_checkpoints_do_not_count(broken, unbroken):
    for name in ("checkpoint-999", "checkpoint-abc", "checkpoint-7"):
        (broken / name).mkdir()
    (broken / "checkpoint-7" / "pytorch_lora_weights.safetensors").write_bytes(b"x")
    again(broken)
    assert equal(learned(broken), learned(unbroken))
    assert (broken / "checkpoint-999").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(adapter=dataclasses.replace(SMALL, rank=16)), "--gralora_rank 8, not 16"),
        (dict(adapter=dataclasses.replace(SMALL, k=4)), "--gralora_k 2, not 4"),
        (
            dict(adapter=dataclasses.replace(SMALL, targets="attention+ff")),
            "--targets attention, not attention",
        ),
        (dict(seed=1), "--seed 0, not 1"),
        (dict(snr_gamma=5.0), "was started with no --snr_gamma, not 5.0"),
        (dict(train_batch_size=1), "--train_batch_size 2, not 1"),
        (dict(learning_rate=1e-4), "--learning_rate 0.001, not 0.0001"),
        (
            dict(resume_from_checkpoint="checkpoint-9"),
            "checkpoint-9 does not exist; .* has: checkpoint-1, checkpoint-2, checkpoint-3",
        ),
        (dict(resume_from_checkpoint="checkpoint-1"), "checkpoint-1 is not the latest checkpoint of"),
        (dict(resume_from_checkpoint="elsewhere/checkpoint-1"), "resumes from its own checkpoints"),
        (dict(max_train_steps=2), "at step 3 already, beyond the 2"),
    ],
)
def test_what_cannot_be_resumed_is_refused_and_nothing_changes(broken, options, words):
    before = {p: p.read_bytes() for p in broken.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match=words):
        again(broken, **options)
    assert {p: p.read_bytes() for p in broken.rglob("*") if p.is_file()} == before


def test_other_images_are_refused(tmp_path):
    shutil.copytree(EXAMPLE, tmp_path / "images")
    options = dict(instance_data_dir=str(tmp_path / "images"), instance_prompt="a photo of sks robot")
    again(tmp_path / "run", max_train_steps=1, **options)
    for name in ("01.png", "01.txt"):
        (tmp_path / "images" / name).unlink()
    with pytest.raises(ConfigError, match="made with different images or captions"):
        again(tmp_path / "run", **options)


def test_a_folder_of_images_that_was_moved_resumes_the_run(tmp_path, monkeypatch):
    """Also without --output_dir, by which a run is named after the folder: contents are compared."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(EXAMPLE, tmp_path / "images")
    options = dict(instance_prompt="a photo of sks robot", instance_data_dir="images")
    whole = again(tmp_path / "whole", **options)
    run = train(dataclasses.replace(QUICK, max_train_steps=2, **options))
    (run / "status.json").write_text('{"state": "running", "pid": 1}')  # killed
    (tmp_path / "photos").mkdir()
    (tmp_path / "images").rename(tmp_path / "photos" / "images")
    moved = dict(instance_data_dir="photos/images")
    assert train(dataclasses.replace(QUICK, **options | moved)) == run
    assert equal(learned(run), learned(whole))
    assert exact_metrics(run) == exact_metrics(whole)


def test_an_older_checkpoint_is_taken_when_the_later_ones_are_moved_away(broken, unbroken, tmp_path):
    for step in (2, 3):
        (broken / f"checkpoint-{step}").rename(tmp_path / f"kept-{step}")
    again(broken, resume_from_checkpoint="checkpoint-1")
    assert equal(learned(broken), learned(unbroken))


def test_resuming_what_is_done_changes_nothing(unbroken):
    before = {p: p.stat().st_mtime_ns for p in unbroken.rglob("*") if p.is_file() and p.name != ".lock"}
    assert again(unbroken) == unbroken
    assert {
        p: p.stat().st_mtime_ns for p in unbroken.rglob("*") if p.is_file() and p.name != ".lock"
    } == before


def test_the_limit_never_keeps_a_damaged_checkpoint_for_a_good_one(broken, unbroken):
    (broken / "checkpoint-3" / "state.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="checkpoint-3 is skipped"):
        again(broken, checkpoints_total_limit=1, max_train_steps=4)
    assert checkpoints.newest(broken).name == "checkpoint-4"
    assert [p.name for p in broken.glob("checkpoint-*")] == ["checkpoint-4"]
    again(broken)
    assert equal(learned(broken), learned(unbroken))


def test_other_steps_are_refused_where_the_schedule_depends_on_them(tmp_path):
    again(tmp_path / "run", max_train_steps=2, lr_scheduler="cosine")
    with pytest.raises(ConfigError, match="a different number of steps, which --lr_scheduler depends on"):
        again(tmp_path / "run", max_train_steps=4, lr_scheduler="cosine")


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    again(tmp_path / "run", checkpointing_steps=1, checkpoints_total_limit=2)
    assert sorted(p.name for p in (tmp_path / "run").glob("*checkpoint*")) == ["checkpoint-4", "checkpoint-5"]


def test_two_runs_in_one_folder_the_second_refuses(broken):
    with (
        FileLock(broken / ".lock"),
        pytest.raises(ConfigError, match=r"being written by another run \(process 1\)"),
    ):
        again(broken)


def test_without_output_dir_the_unfinished_run_goes_on_and_a_finished_one_is_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(QUICK, max_train_steps=1)
    assert train(config).name == "robot-gralora-r8"
    assert train(config).name == "robot-gralora-r8-2"
    (tmp_path / "runs" / "robot-gralora-r8-2" / "status.json").write_text('{"state": "running", "pid": 1}')
    assert train(config).name == "robot-gralora-r8-2"
    assert train(dataclasses.replace(config, seed=5)).name == "robot-gralora-r8-3"


def test_images_on_the_way_and_the_report(tmp_path):
    options = dict(
        skip_final_inference=False,
        num_inference_steps=2,
        validation_steps=2,
        max_train_steps=3,
        validation_prompt="a dog|sks robot",
    )
    run = again(tmp_path / "run", **options)
    assert sorted(p.name for p in (run / "samples").iterdir()) == ["step-00000", "step-00002", "step-00003"]
    page = (run / "report.html").read_text()
    assert page.count("data:image/jpeg") == 3 * 2 + 6  # samples, and training images
    assert "<polyline" in page
    assert "://" not in page
    assert "Estimated and actual use" in page


def test_tensorboard_gets_every_step(tmp_path):
    run = again(tmp_path / "run", max_train_steps=2, report_to="tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "logs" / "gralora_diffusion"))
    events.Reload()
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(
        [line["loss"] for line in read_metrics(run)]
    )


def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package wandb: pip install wandb"):
        again(tmp_path / "run", report_to="wandb")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("mode", "code"), [("online", 2), ("offline", 0)])
def test_wandb_without_a_key_is_refused_before_anything_is_written_and_logs_offline(tmp_path, mode, code):
    run, nobody = (
        tmp_path / "run",
        dict(
            HOME=str(tmp_path / "home"),
            NETRC=str(tmp_path / "netrc"),
            WANDB_MODE=mode,
            WANDB_DIR=str(tmp_path),
        ),
    )
    command = [
        *TRAIN,
        "--output_dir",
        str(run),
        "--report_to",
        "wandb",
        "--max_train_steps",
        "2",
        "--train_batch_size",
        "1",
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | nobody
    done = subprocess.run(
        [*command, "--skip_final_inference"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert run.exists() == (code == 0)
    if code:
        assert "gralora train: --report_to wandb: wandb has no API key: run wandb login" in done.stderr
    else:
        assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def signal_at_step(run: Path, step: int, number: int) -> threading.Thread:
    """Send this process a real signal when the step's line is written."""

    def watch():
        while not (run / "metrics.jsonl").exists() or len(read_metrics(run)) < step:
            time.sleep(0.005)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_trap_9_a_signal_finishes_the_step_saves_and_says_how_to_go_on(tmp_path, unbroken, number, capsys):
    thread = signal_at_step(tmp_path / "run", 2, number)
    with pytest.raises(
        Stopped, match=r"stopped at step (\d) of 5; run the same command to resume from .*/checkpoint-\1"
    ) as stop:
        again(tmp_path / "run")
    bar = capsys.readouterr().err
    done = len(read_metrics(tmp_path / "run"))
    assert bar.count(f"| {done}/5, ") == 2  # after the step, and as it stays
    assert bar.endswith("\n")  # while the exception is held, as where its message is printed
    del stop
    thread.join()
    assert read_status(tmp_path / "run")["state"] == "stopped"
    steps = len(read_metrics(tmp_path / "run"))
    assert (tmp_path / "run" / f"checkpoint-{steps}" / "manifest.json").exists()
    again(tmp_path / "run")
    assert equal(learned(tmp_path / "run"), learned(unbroken))


def real_command(run: Path, launcher: list[str], *flags: str):
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [
        *launcher,
        str(SCRIPTS / "train_sdxl.py"),
        "--gralora_rank",
        "8",
        "--max_train_steps",
        "400",
        "--skip_final_inference",
        "--output_dir",
        str(run),
        *flags,
    ]
    return subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(run: Path, step: int, process) -> None:
    while process.poll() is None and len(read_metrics(run)) < step:
        time.sleep(0.02)


LAUNCHERS = {
    "python": [sys.executable],
    "accelerate": [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1"],
    "two processes": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ctrl_c_in_a_terminal_saves_whatever_launched_it(tmp_path, launcher):
    """The signal goes to the whole group of processes, as a terminal sends it."""
    run = tmp_path / "run"
    with real_command(run, LAUNCHERS[launcher]) as process:
        wait_for_step(run, 3, process)
        os.killpg(process.pid, signal.SIGINT)
        said, errors = process.communicate()
    assert "run the same command to resume from" in said, said + errors
    if launcher == "python":
        assert process.returncode == 0
        assert "Traceback" not in errors
    steps = len(read_metrics(run))
    assert checkpoints.newest(run).name == f"checkpoint-{steps}"
    assert read_status(run)["state"] == "stopped"


@pytest.mark.slow
def test_a_second_signal_stops_at_once(tmp_path):
    run = tmp_path / "run"
    with real_command(
        run, [sys.executable], "--gradient_accumulation_steps", "200"
    ) as process:  # a step takes long
        while process.poll() is None and read_status(run)["state"] != "running":
            time.sleep(0.02)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        time.sleep(1.5)
        assert process.poll() is None  # it finishes the step
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGINT
    assert read_status(run)["state"] == "stopped"
    assert checkpoints.newest(run) is None


def test_a_full_disk_is_one_sentence_and_the_last_good_checkpoint_stays(broken, unbroken, tmp_path):
    """A limit on the size of files, which the system enforces in the real write."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(
            TrainingError, match=r"checkpoint-5 could not be written to .*; checkpoint-3 is untouched"
        ):
            again(broken)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert not list(broken.glob(".checkpoint*"))
    again(broken)
    assert equal(learned(broken), learned(unbroken))


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small file system")
def test_a_really_full_disk_names_what_is_needed_and_free(tmp_path, unbroken):
    (tmp_path / "small").mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", tmp_path / "small"], capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(
            TrainingError,
            match=r"the disk is full \(\d+ MB needed, \d+ MB free\); checkpoint-\d is untouched",
        ):
            again(tmp_path / "small" / "run", checkpointing_steps=1)
    finally:
        subprocess.run(["umount", tmp_path / "small"], check=True)


def test_state_of_any_shape_survives_packing():
    value = dict(a=[1, 2.5, None, True, "x"], b=(torch.arange(3), {3: torch.zeros(())}), c={})
    tensors, rest = checkpoints.pack(value)
    back = checkpoints.unpack(json.loads(json.dumps(rest)), tensors)
    assert back["a"] == value["a"]
    assert back["c"] == {}
    assert isinstance(back["b"], tuple)
    assert torch.equal(back["b"][0], torch.arange(3))
    assert torch.equal(back["b"][1][3], torch.zeros(()))
    with pytest.raises(TypeError, match="which a checkpoint cannot hold"):
        checkpoints.pack(dict(a=[object()]))


def test_a_checkpoint_is_an_adapter(unbroken):
    from gralora_diffusion import load_adapter, load_sdxl

    assert load_adapter(load_sdxl(), unbroken / "checkpoint-3")["config"]["rank"] == 8


KILLS = int(os.environ.get("KILLS", "3"))


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_bit_equal(tmp_path):
    """The command, killed again and again: KILLS=50 pytest tests/training -k random_moments -s"""
    import random

    steps = max(24, 10 * KILLS)
    options = [
        "--gralora_rank",
        "8",
        "--train_batch_size",
        "1",
        "--max_train_steps",
        str(steps),
        "--skip_final_inference",
        "--checkpointing_steps",
        "1",
    ]
    command = [*TRAIN, *options, "--checkpoints_total_limit", "2", "--output_dir"]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    subprocess.run([*command, str(tmp_path / "whole")], check=True, **quiet)
    moments, run, killed, saving = random.Random(0), tmp_path / "broken", 0, 0
    while killed < KILLS:
        seen = len(read_metrics(run))
        with subprocess.Popen([*command, str(run)], **quiet) as process:
            while process.poll() is None and len(read_metrics(run)) <= seen:  # a step further at least
                time.sleep(0.002)
            time.sleep(moments.uniform(0, 0.25))
            process.kill()
            _, said = process.communicate()
        assert process.returncode == -9, said.decode()
        saving += bool(list(run.glob(".checkpoint-*")))
        killed += 1
    last = subprocess.run([*command, str(run)], **quiet)
    assert last.returncode == 0, last.stderr
    assert equal(learned(tmp_path / "whole"), learned(run))
    assert not [p for p in run.rglob(".*") if p.name != ".lock"]
    assert [line["step"] for line in read_metrics(run)] == list(range(1, steps + 1))
    print(
        f"\n{killed} kills, {saving} of them while a checkpoint was written or deleted: "
        "bit-equal, no partial file"
    )


@pytest.mark.parametrize("wanted", ["manifest.json", "state.json"])
def test_a_hostile_checkpoint_is_refused(broken, wanted):
    path = broken / "checkpoint-3" / wanted
    path.write_text(
        '{"step": 3, "files": {"../../config.json": {"size": 1, "sha256": ""}}}'
        if wanted == "manifest.json"
        else "[" * 100_000
    )
    with pytest.raises(ConfigError, match="cannot resume from"):
        checkpoints.load(broken / "checkpoint-3")
