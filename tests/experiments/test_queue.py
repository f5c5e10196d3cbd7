"""The table of runs: each done once, by whichever process comes first, and never lost."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter

import pytest
from sweeps import PAIRED

from gralora_diffusion.evaluation.metric import METRICS, Score
from gralora_diffusion.experiments.queue import CLAIMS, claimed, do_runs, others_at_work, run_name
from gralora_diffusion.experiments.results import RESULTS, append_result, read_results
from gralora_diffusion.options import ConfigError
from gralora_diffusion.training.signals import Stopped

RUNS = [
    dict(method="lora", rank=4, size=4, k=None, lr=1e-3, seed=seed, steps=2, part="test")
    for seed in range(12)
]
HOLD = """
import json, sys, time
from pathlib import Path
from gralora_diffusion.experiments.queue import claimed
with claimed(Path(sys.argv[1]), json.loads(sys.argv[2])) as mine:
    print(mine, flush=True)
    time.sleep(600)
"""


def quiet(_) -> None:
    pass


class Recorder:
    """A run that only notes its seed."""

    def __init__(self):
        self.seeds = []

    def __call__(self, run: dict) -> dict:
        self.seeds.append(run["seed"])
        return {}


@pytest.fixture
def claim_elsewhere(tmp_path):
    """claim_elsewhere(run): another process, which has claimed the run."""
    processes = []

    def start(run: dict) -> subprocess.Popen:
        import json

        command = [sys.executable, "-c", HOLD, str(tmp_path), json.dumps(run)]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout.readline() == "True\n"
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_sweep_resumes_at_any_run(tmp_path):
    did = []

    def do(run):
        if len(did) == 3:
            raise Stopped("enough")
        did.append(run["seed"])
        return dict(parameters=run["seed"])

    with pytest.raises(Stopped):
        do_runs(tmp_path, RUNS[:5], do, quiet)
    assert [entry["run"]["seed"] for entry in read_results(tmp_path)] == [0, 1, 2]
    assert not list((tmp_path / CLAIMS).iterdir())
    did.clear()
    do_runs(tmp_path, RUNS[:5], do, quiet)
    assert did == [3, 4]
    assert [entry["run"] for entry in read_results(tmp_path)] == RUNS[:5]


def test_a_half_written_line_is_no_result_and_spoils_none(tmp_path):
    do_runs(tmp_path, RUNS[:2], Recorder(), quiet)
    text = (tmp_path / RESULTS).read_text()
    (tmp_path / RESULTS).write_text(text[:-20])
    assert [entry["run"] for entry in read_results(tmp_path)] == RUNS[:1]
    do_runs(tmp_path, RUNS[:3], Recorder(), quiet)
    assert sorted(entry["run"]["seed"] for entry in read_results(tmp_path)) == [0, 1, 2]


def test_scores_are_read_as_they_were_written(tmp_path):
    scores = {PAIRED: [0.5], Score(METRICS["held-out loss"]): [0.1]}
    scores[Score(METRICS["drift"], "a, b (c)", 0.5)] = [0.25, 1.0]
    append_result(tmp_path, dict(run=RUNS[0], scores=scores))
    text = (tmp_path / RESULTS).read_text()
    assert '{"paired, X": [0.5], "held-out loss": [0.1], "drift, a, b (c) at 0.5": [0.25, 1.0]}' in text
    assert read_results(tmp_path) == [dict(run=RUNS[0], scores=scores)]
    (tmp_path / RESULTS).write_text(text.replace("paired", "pared"))
    with pytest.raises(ConfigError, match="'pared, X' is not a score; its first word must be one of subject"):
        read_results(tmp_path)


def test_a_claim_counts_while_its_process_lives(tmp_path, claim_elsewhere):
    other = claim_elsewhere(RUNS[0])
    assert others_at_work(tmp_path)
    with claimed(tmp_path, RUNS[0]) as mine, claimed(tmp_path, RUNS[1]) as free:
        assert (mine, free) == (False, True)
    other.kill()  # not waited for: it is a zombie, and its lock is free
    deadline = time.monotonic() + 30
    while others_at_work(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (tmp_path / CLAIMS / run_name(RUNS[0])).exists()
    with claimed(tmp_path, RUNS[0]) as mine:
        assert mine
    assert not list((tmp_path / CLAIMS).iterdir())


def test_a_run_that_is_done_cannot_be_claimed(tmp_path):
    do_runs(tmp_path, RUNS[:1], Recorder(), quiet)
    with claimed(tmp_path, RUNS[0]) as mine:
        assert not mine
    assert not others_at_work(tmp_path)


def test_a_claim_ends_with_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), claimed(tmp_path, RUNS[0]):
        raise ZeroDivisionError
    with claimed(tmp_path, RUNS[0]) as mine:
        assert mine


def test_a_sweep_waits_for_the_runs_of_others_and_does_what_they_leave(tmp_path, claim_elsewhere):
    """Two processes: the second command of a chain may rest on all runs of the first."""
    other = claim_elsewhere(RUNS[0])
    do, lines = Recorder(), []

    def waiting() -> bool:
        return "waiting" in " ".join(lines)

    with pytest.raises(Stopped, match=r"stopped after 1 of 2 runs; .* to resume with lora-r4-lr0\.001-seed0"):
        do_runs(tmp_path, RUNS[:2], do, lines.append, waiting)
    assert do.seeds == [1]  # what is free is done first
    assert [line for line in lines if "waiting for other processes' runs: lora-r4" in line] == lines[1:2]
    other.kill()
    do_runs(tmp_path, RUNS[:2], do, quiet)
    assert do.seeds == [1, 0]


def test_a_stop_counts_between_two_runs_and_after_the_last(tmp_path):
    do = Recorder()
    for wanted in (2, 1):
        with pytest.raises(Stopped):
            do_runs(tmp_path, RUNS[:wanted], do, quiet, lambda: bool(do.seeds))
    assert do.seeds == [0]


def test_a_stop_within_a_run_counts_the_finished_ones(tmp_path):
    def do(run: dict) -> dict:
        if run == RUNS[1]:
            raise Stopped("stopped in a step")
        return {}

    sentence = r"^stopped after 1 of 2 runs; run the same command to resume with the first step of lora-r4-"
    with pytest.raises(Stopped, match=sentence):
        do_runs(tmp_path, RUNS[:2], do, quiet)


def slowly(run: dict) -> dict:
    time.sleep(0.05)
    return dict(by=os.getpid())


def test_processes_share_a_sweep_and_do_no_run_twice(tmp_path):
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=do_runs, args=(tmp_path, RUNS, slowly, quiet)) for _ in range(3)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 60
    while len(read_results(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    workers[0].kill()  # in the middle of a run, as likely as not: others do it
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers[1:]] == [0, 0]
    do_runs(tmp_path, RUNS, slowly, quiet)
    done = read_results(tmp_path)
    assert Counter(entry["run"]["seed"] for entry in done) == Counter(range(12))
    assert len({entry["by"] for entry in done}) > 1


def test_names_tell_runs_apart():
    assert len({run_name(run) for run in RUNS}) == 12
    assert run_name(RUNS[0]).startswith("lora-r4-lr0.001-seed0-")
    assert run_name(RUNS[0] | dict(subject="cat", k=2)).startswith("cat-lora-r4-k2-lr0.001-seed0-")
