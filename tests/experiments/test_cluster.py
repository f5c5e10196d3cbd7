"""A sweep on a local Ray cluster of two workers, one of which is killed in the middle of a run."""

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
    """The process ids of this cluster's workers that do a run now."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes().split(b"\0")[0]
        except OSError:
            continue
        if title.startswith(b"ray::do_here"):
            found.append(int(folder.name))
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds workers by /proc")
def test_a_sweep_ends_though_a_worker_is_killed(tmp_path, capsys):
    sweep = tmp_path / "sweep"
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(PROMPT)
    options = f"--output {sweep} --prompts {prompts} --methods our-lora --ranks 4 --steps {STEPS}"
    options += " --batch_size 1 --num_inference_steps 1 --encoder embedded --seeds 0 1 2 --ray local"
    killed = []

    def kill_one() -> None:
        while not killed:
            for process in workers_at_work()[:1]:
                os.kill(process, signal.SIGKILL)
                killed.append(process)
            time.sleep(0.1)

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    main(options.split())
    thread.join()
    done = read_results(sweep)
    assert sorted(entry["run"]["seed"] for entry in done) == [0, 1, 2]
    assert all(len(entry["losses"]) == STEPS for entry in done)
    assert "3 runs are done" in capsys.readouterr().out
    alone = tmp_path / "alone"
    main(options.replace(str(sweep), str(alone)).replace("--ray local", "").split())
    by_seed = {entry["run"]["seed"]: entry for entry in done}
    for entry in read_results(alone):
        assert entry["losses"] == pytest.approx(by_seed[entry["run"]["seed"]]["losses"], abs=2e-5)
    main(options.split())
    assert read_results(sweep) == done  # nothing is left to do


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("--ray localhost:1", "there is no such cluster"),
        ("--ray nowhere", "an address is HOST:PORT, auto or local"),
        ("--ray local --dry_run", "--ray does runs"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, capsys, options, problem):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(PROMPT)
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path / "x"), "--prompts", str(prompts), *options.split()])
    assert problem in capsys.readouterr().err
