"""A sweep on a local Ray cluster of two workers, one of which is killed in the middle of a run."""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from gralora_diffusion.cli.compare import main
from gralora_diffusion.experiments.results import read_results

pytest.importorskip("ray")

STEPS = 60
PROMPT = "a photo of sks robot"


def workers_at_work() -> list[int]:
    """The process ids of this process's descendants that do a run now."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            titles[int(folder.name)] = (folder / "cmdline").read_bytes()
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = []
    for process, title in titles.items():
        ancestor = process
        while ancestor in parents and ancestor != os.getpid():
            ancestor = parents[ancestor]
        if title.startswith(b"ray::do_here") and ancestor == os.getpid():
            found.append(process)
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds workers by /proc")
def test_a_sweep_ends_though_a_worker_is_killed(tmp_path, capsys):
    sweep = tmp_path / "sweep"
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(PROMPT)
    options = f"--output {sweep} --prompts {prompts} --methods our-lora --ranks 4 --steps {STEPS}"
    options += " --batch_size 1 --num_inference_steps 1 --encoder embedded --seeds 0 1 2 --ray local"
    killed, ended = [], threading.Event()

    def kill_one() -> None:
        while not killed and not ended.is_set():
            for process in workers_at_work()[:1]:
                os.kill(process, signal.SIGKILL)
                killed.append(process)
            time.sleep(0.1)

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    main(options.split())
    ended.set()
    thread.join()
    assert killed
    done = read_results(sweep)
    assert sorted(entry["run"]["seed"] for entry in done) == [0, 1, 2]
    assert all(len(entry["losses"]) == STEPS for entry in done)
    assert "3 runs done" in capsys.readouterr().out
    alone = tmp_path / "alone"
    main(options.replace(str(sweep), str(alone)).replace("--ray local", "").split())
    by_seed = {entry["run"]["seed"]: entry for entry in done}
    for entry in read_results(alone):
        assert entry["losses"] == pytest.approx(by_seed[entry["run"]["seed"]]["losses"], abs=2e-5)
    main(options.split())
    assert read_results(sweep) == done  # nothing is left to do


def test_a_run_that_fails_is_one_sentence_and_others_are_kept(tmp_path, capsys):
    """One image is gone after the plan was made: its runs fail, on the workers."""
    sweep = tmp_path / "sweep"
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(PROMPT)
    options = f"--output {sweep} --prompts {prompts} --methods our-lora --ranks 4 --steps 2 --batch_size 1"
    options += " --num_inference_steps 1 --encoder embedded --ray local"
    (sweep / "runs").mkdir(parents=True)
    (sweep / "cache").write_text("a file where the cache's folder should be")
    with pytest.raises(SystemExit) as ended:
        main(options.split())
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "cache" in error
    assert read_results(sweep) == []
    (sweep / "cache").unlink()
    main(options.split())
    assert len(read_results(sweep)) == 1


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("--ray localhost:1", "cannot connect to a cluster"),
        ("--ray nowhere", "an address is HOST:PORT, auto or local"),
        ("--ray local --dry_run", "--ray cannot be combined"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, capsys, options, problem):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(PROMPT)
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path / "x"), "--prompts", str(prompts), *options.split()])
    assert problem in capsys.readouterr().err
