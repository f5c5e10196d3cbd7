"""Runs as processes: the queue, the true state of a run, its log."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import psutil
import pytest
from page_server import until

from gralora_diffusion.config import TrainConfig
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui.handlers import browser_error
from gralora_diffusion.ui.processes import birth_of, end_group, end_process
from gralora_diffusion.ui.run_files import clean, log_tail
from gralora_diffusion.ui.run_queue import RunQueue, start_trainer


def write_job(workspace, name, **job):
    (workspace.runs / name).mkdir()
    (workspace.runs / name / "job.json").write_text(
        json.dumps(dict(config={}, created=time.time(), state="started") | job)
    )
    return workspace.runs / name


def test_a_process_with_the_same_number_is_not_the_run(workspace):
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        write_job(workspace, "old", pid=sleeper.pid, born=time.time() - 9999, started=time.time() - 9999)
        queue = RunQueue(workspace)
        assert queue.state(workspace.runs / "old")["state"] == "failed"
        assert "not active" in queue.stop("old")
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()


@pytest.mark.parametrize("seconds", [-3600, 1, 86400])
def test_a_run_stays_active_when_the_clock_is_set(workspace, monkeypatch, seconds):
    me = dict(pid=os.getpid(), born=birth_of(os.getpid()), started=time.time() + 5)
    run = write_job(workspace, "busy", **me)
    was = psutil.boot_time()  # what psutil adds to a creation time on Linux
    for module in (psutil, psutil._psplatform):
        monkeypatch.setattr(module, "boot_time", lambda: was + seconds)
    assert RunQueue(workspace).state(run)["state"] == "starting"


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("windows", [False, True])
def test_all_processes_of_a_run_are_ended(monkeypatch, windows, at_once):
    """Windows has no process groups."""
    if windows:
        monkeypatch.delattr(os, "killpg")
    code = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    leader = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
    child = psutil.Process(int(leader.stdout.readline()))
    end_group(leader.pid, at_once)
    assert leader.wait(30) != 0
    leader.stdout.close()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the child has ended", 30)
    end_group(leader.pid, at_once)  # which is gone
    end_process(leader.pid)


def test_a_hostile_job_fails_and_the_queue_goes_on(workspace):
    (workspace.runs / "evil").mkdir()
    (workspace.runs / "evil" / "job.json").write_text(
        json.dumps(dict(config=dict(no_such_option=1), created=1.0, state="queued"))
    )
    for name, text in (("deep", "[" * 100_000), ("list", "[1]"), ("empty", "")):
        (workspace.runs / name).mkdir()
        (workspace.runs / name / "job.json").write_text(text)
    queue = RunQueue(workspace)
    assert "cannot be started" in queue.start_next()
    assert queue.state(workspace.runs / "evil")["state"] == "failed"
    assert queue.start_next() == ""
    assert queue.state(workspace.runs / "deep")["state"] == "unknown"
    with pytest.raises(ConfigError):
        queue.resume("deep")


def test_a_run_is_added_once(workspace):
    queue = RunQueue(workspace)
    write_job(
        workspace,
        "busy",
        pid=os.getpid(),
        born=birth_of(os.getpid()),
        started=time.time() + 5,
    )
    assert "1 in the queue, after busy" in queue.add("one", TrainConfig(), token="hf_secret")
    assert "hf_secret" not in (workspace.runs / "one" / "job.json").read_text()
    with pytest.raises(ConfigError, match="already exists"):
        queue.add("one", TrainConfig())
    assert queue.stop("one") == "one was removed from the queue"
    assert queue.state(workspace.runs / "one")["state"] == "canceled"
    assert queue.stop("one") == "one is not active: its state is cancelled"


def test_a27_a_full_disk_is_a_sentence_and_leaves_nothing_half_written(workspace):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
        with pytest.raises(OSError, match="File too large") as error:
            RunQueue(workspace).add("one", TrainConfig())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert "could not be read or written" in browser_error(error.value).message
    assert workspace.run_names() == []


def test_a25_the_log_is_clean_and_short(tmp_path):
    (tmp_path / "log.txt").write_bytes(
        b"first\n\x1b[31mred\x1b[0m\x1b]0;title\x07 \x00end\n  0%|  \r 50%|#\r100%|##\n"
        + b"x" * 5_000_000
        + b"\n\xff\xfe last\n"
    )
    tail = log_tail(tmp_path)
    assert len(tail) < 20_000
    assert "\x1b" not in tail
    assert tail.endswith("last")
    assert clean("\x1b[31mred\x1b[0m\x1b]0;title\x07 \x00end") == "red end"
    (tmp_path / "log.txt").write_bytes(b"  0%|  \r 50%|#\r100%|##\n")
    assert log_tail(tmp_path) == "100%|##"


def test_a_module_in_the_workspace_is_not_imported_by_a_run(workspace):
    (workspace.root / "torch.py").write_text("raise SystemExit('the wrong torch')")
    log = workspace.root / "log.txt"
    config = TrainConfig(output_dir="runs/x", instance_data_dir="nowhere")
    child = start_trainer(config, workspace.root, log, dict(os.environ))
    assert child.wait(120) == 2
    assert "nowhere is not a folder" in log.read_text()
    config = TrainConfig(output_dir="runs/x", resume_from_checkpoint="latest")
    child = start_trainer(config, workspace.root, log, dict(os.environ))
    assert child.wait(120) == 2
    assert "the wrong torch" not in log.read_text()
    assert "holds no run" in log.read_text()
