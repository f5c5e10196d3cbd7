"""The table of runs: each done once, by whichever process comes first, and never lost; what is learnt is as the trainer would."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from accelerate import Accelerator
from helpers import ROOT, SCRIPTS
from safetensors.torch import load_file

from gralora_diffusion import AdapterConfig, TrainConfig, load_sdxl
from gralora_diffusion.cli import compare
from gralora_diffusion.cli.main import main
from gralora_diffusion.data.dataset import EXAMPLE, EXAMPLE_PROMPT
from gralora_diffusion.data.image_folder import TrainingImage, find_images
from gralora_diffusion.evaluation.encoders import load_encoder
from gralora_diffusion.evaluation.features import image_features
from gralora_diffusion.experiments.methods import GRADIENTS, Adapted, Spec, shapes_of
from gralora_diffusion.experiments.queue import RESULTS, claimed, name_of, results, split, sweep
from gralora_diffusion.experiments.run import Experiment, run_experiment
from gralora_diffusion.options import ConfigError
from gralora_diffusion.training.signals import Interrupts, Stopped
from gralora_diffusion.training.train import train

LAST = r"up_blocks\.1\.attentions\.1.*attn"  # where gradients are largest
RUNS = [
    dict(method="lora", rank=4, size=4, k=None, lr=1e-3, seed=seed, steps=2, part="test")
    for seed in range(12)
]


def test_a_sweep_resumes_at_any_run(tmp_path):
    did = []

    def do(run):
        if len(did) == 3:
            raise Stopped("enough")
        did.append(run["seed"])
        return dict(parameters=run["seed"])

    with pytest.raises(Stopped):
        sweep(tmp_path, RUNS[:5], do, lambda _: None)
    assert [r["run"]["seed"] for r in results(tmp_path)] == [0, 1, 2]
    assert not list((tmp_path / "claims").iterdir())
    did.clear()
    sweep(tmp_path, RUNS[:5], do, lambda _: None)
    assert did == [3, 4]
    assert [r["run"] for r in results(tmp_path)] == RUNS[:5]


def test_a_half_written_line_is_no_result_and_spoils_none(tmp_path):
    sweep(tmp_path, RUNS[:2], lambda run: {}, lambda _: None)
    text = (tmp_path / RESULTS).read_text()
    (tmp_path / RESULTS).write_text(text[:-20])
    assert [r["run"] for r in results(tmp_path)] == RUNS[:1]
    sweep(tmp_path, RUNS[:3], lambda run: {}, lambda _: None)
    assert sorted(r["run"]["seed"] for r in results(tmp_path)) == [0, 1, 2]


def write_claim(tmp_path, **owner):
    (tmp_path / "claims").mkdir(exist_ok=True)
    (tmp_path / "claims" / name_of(RUNS[0])).write_text(json.dumps(owner))


def test_a_claim_counts_while_its_process_lives(tmp_path):
    here, began = socket.gethostname(), psutil.Process().create_time()
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    ).stdout
    for owner, free in (
        (dict(host=here, pid=os.getpid(), began=began), False),
        (dict(host="elsewhere", pid=1, began=0), False),
        (dict(host=here, pid=os.getpid(), began=began - 100), True),  # another process of the same number
        (dict(host=here, pid=int(dead), began=began), True),
        (dict(nonsense=1), True),
    ):
        write_claim(tmp_path, **owner)
        with claimed(tmp_path, RUNS[0]) as mine:
            assert mine == free, owner
        assert (tmp_path / "claims" / name_of(RUNS[0])).exists() != free


def test_a_killed_process_that_nobody_waited_for_is_dead(tmp_path):
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    process = psutil.Process(zombie.pid)
    began = process.create_time()
    while process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    write_claim(tmp_path, host=socket.gethostname(), pid=zombie.pid, began=began)
    with claimed(tmp_path, RUNS[0]) as mine:
        assert mine
    zombie.wait()


def test_a_sweep_waits_for_the_runs_of_others_and_takes_over_what_they_leave(tmp_path):
    """Two processes: the second command of a chain may rest on all runs of the first."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    write_claim(
        tmp_path, host=socket.gethostname(), pid=other.pid, began=psutil.Process(other.pid).create_time()
    )
    did, said = [], []
    with pytest.raises(Stopped, match=r"stopped before lora-r4-lr0\.001-seed0"):
        sweep(
            tmp_path,
            RUNS[:2],
            lambda run: did.append(run["seed"]) or {},
            said.append,
            lambda: "waiting" in " ".join(said),
        )
    assert did == [1]  # what is free is done first
    assert [line for line in said if str(tmp_path / "claims") in line] == said[1:2], "once"
    other.kill()
    other.wait()
    sweep(tmp_path, RUNS[:2], lambda run: did.append(run["seed"]) or {}, lambda _: None)
    assert did == [1, 0]


def test_a_stop_is_heard_between_two_runs_and_after_the_last(tmp_path):
    did = []
    for wanted in (2, 1):
        with pytest.raises(Stopped):
            sweep(
                tmp_path,
                RUNS[:wanted],
                lambda run: did.append(run["seed"]) or {},
                lambda _: None,
                lambda: bool(did),
            )
    assert did == [0]


def slowly(run):
    time.sleep(0.05)
    return dict(by=os.getpid())


def test_processes_share_a_sweep_and_do_no_run_twice(tmp_path):
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=sweep, args=(tmp_path, RUNS, slowly, lambda _: None)) for _ in range(3)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 60
    while len(results(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    workers[0].kill()  # in the middle of a run, as likely as not: others take it over
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers[1:]] == [0, 0]
    sweep(tmp_path, RUNS, slowly, lambda _: None)
    assert Counter(r["run"]["seed"] for r in results(tmp_path)) == Counter(range(12))
    assert len({r["by"] for r in results(tmp_path)}) > 1


def test_the_split_is_fixed_and_its_parts_are_apart():
    images = [TrainingImage(Path(f"{i}.png"), str(i), "", (64, 64)) for i in range(30)]
    learnt, test = split(images, "test")
    same, validation = split(images, "validation")
    assert (len(learnt), len(test), len(validation)) == (24, 3, 3)
    assert learnt == same
    assert len({p.path for p in (*learnt, *test, *validation)}) == 30
    with pytest.raises(ConfigError, match="too few"):
        split(images[:9], "test")


def bench(tmp_path, prompts=()):
    config = TrainConfig(
        adapter=AdapterConfig(method="lora", rank=4), train_batch_size=2, num_inference_steps=2, resolution=64
    ).resolved()
    images = find_images(EXAMPLE, EXAMPLE_PROMPT)
    learnt, held = (images, []) if prompts else (images[:4], images[4:])
    features = partial(image_features, cache=tmp_path / "features")
    return Experiment(
        tmp_path, config, Accelerator(), learnt, held, list(prompts), [load_encoder("embedded")], features
    )


def test_a_run_of_the_sweep_is_a_run_of_the_trainer(tmp_path):
    """Our own LoRA learns, step by step and bit by bit, what train() teaches it: one trainer, one data order."""
    mine = bench(tmp_path, ["a photo of sks robot"])
    found = run_experiment(RUNS[3] | dict(method="our-lora"), mine, Interrupts(lambda: None))
    config = dataclasses.replace(
        mine.config,
        seed=3,
        learning_rate=1e-3,
        max_train_steps=2,
        skip_final_inference=True,
        output_dir=str(tmp_path / "t"),
    )
    theirs = load_file(train(config) / "adapter.safetensors")
    ours = load_file(tmp_path / "runs" / name_of(RUNS[3] | dict(method="our-lora")) / "adapter.safetensors")
    assert len(ours) == len(theirs)
    assert all(torch.equal(tensor, theirs[f"unet.{name}"]) for name, tensor in ours.items())
    lines = [json.loads(line) for line in (tmp_path / "t" / "metrics.jsonl").read_text().splitlines()]
    assert found["losses"] == [round(line["loss"], 5) for line in lines]
    encoder = mine.encoders[0].name
    assert set(found["scores"]) == {
        f"{s}, {encoder}{at}" for s in ("subject", "prompt", "copy") for at in ("", " at 0")
    }


@pytest.mark.parametrize("method", ["gora", "gralora-inverse"])
def test_gradients_give_a_run_what_they_give_the_trainer(method, tmp_path, monkeypatch):
    """Ranks, k, start and every step as train_sdxl.py has them with the options that docs/experiments/README.md names; as many parameters as rank 4."""
    told = {
        "gora": (
            dict(method="lora", rslora=True, alpha=16.0, rank=4, targets=LAST),
            dict(allocate="gora", gora_init="random", gora_gamma=0.05, gora_tolerance=0.0),
        ),
        "gralora-inverse": (
            dict(method="gralora", rank=4, targets=LAST),
            dict(allocate="inverse", gora_tolerance=0.0),
        ),
    }
    mine, run = bench(tmp_path, ["a photo of sks robot"]), RUNS[3] | dict(method=method)
    mine.config = dataclasses.replace(mine.config, train_batch_size=1, adapter=AdapterConfig(targets=LAST))
    monkeypatch.setitem(GRADIENTS, method, GRADIENTS[method] | dict(gora_batches=2))
    mine.every, mine.strengths, mine.drift = 1, [0.5, 1.0], ["a photo of a whale"]
    found = run_experiment(run, mine, Interrupts(lambda: None))
    adapter, options = told[method]
    config = dataclasses.replace(
        mine.config, adapter=AdapterConfig(**adapter), seed=3, learning_rate=1e-3, max_train_steps=2, skip_final_inference=True,
        gora_batches=2, output_dir=str(tmp_path / "t"), **options,
    )  # fmt: skip
    theirs = {
        name: t
        for name, t in load_file(train(config) / "adapter.safetensors").items()
        if not name.endswith(".alpha")
    }
    ours = load_file(tmp_path / "runs" / name_of(run) / "adapter.safetensors")
    assert len(ours) == len(theirs)
    assert all(torch.equal(tensor, theirs[f"unet.{name}"]) for name, tensor in ours.items())
    assert found["parameters"] == 4 * sum(m + n for m, n in shapes_of(load_sdxl().unet, LAST))
    assert found["gradients"]["batches"] == 2
    assert [step for step, _ in found["curve"]] == [0, 1, 2]
    encoder = mine.encoders[0].name
    assert {f"drift, {encoder}", f"drift, {encoder} at 0.5", f"subject, {encoder} at 0"} < set(
        found["scores"]
    )
    assert 0 < found["scores"][f"drift, {encoder} at 0.5"][0] < found["scores"][f"drift, {encoder}"][0]
    again = Adapted.load(load_sdxl().unet, tmp_path / "runs" / name_of(run) / "adapter.safetensors")
    assert len({tuple(size) for size in again.spec.sizes.values()}) > 1
    assert all(torch.equal(p, ours[name]) for name, p in again.parameters.items())


def test_captions_held_out_are_drawn_and_compared_with_their_images(tmp_path):
    mine = bench(tmp_path)
    found = run_experiment(RUNS[0] | dict(method="mora"), mine, Interrupts(lambda: None))
    assert len(found["scores"]["held-out loss"]) == 8
    assert len(found["scores"][f"paired, {mine.encoders[0].name}"]) == 2
    assert found["parameters"] > 0 < found["seconds_per_step"]
    assert (
        found["file_bytes"]
        == (tmp_path / "runs" / name_of(RUNS[0] | dict(method="mora")) / "adapter.safetensors").stat().st_size
    )
    again = run_experiment(RUNS[0] | dict(method="mora"), mine, Interrupts(lambda: None))
    assert (again["losses"], again["scores"]) == (found["losses"], found["scores"])


def test_a_run_that_diverges_is_a_result(tmp_path):
    mine = bench(tmp_path, ["a robot"])
    mine.config = dataclasses.replace(mine.config, max_grad_norm=1e30)
    found = run_experiment(RUNS[0] | dict(lr=1e30), mine, Interrupts(lambda: None))
    assert "not finite" in found["failed"]
    assert "scores" not in found


@pytest.mark.slow
def test_the_command_compares_tunes_resumes_and_reports(tmp_path, monkeypatch, capsys):
    def command(*arguments):
        main(["compare", "--output", str(tmp_path / "out"), *map(str, arguments)])
        return capsys.readouterr().out

    (tmp_path / "prompts.txt").write_text("a photo of sks robot at night\n\n")
    common = [
        "--prompts",
        tmp_path / "prompts.txt",
        "--methods",
        "lora",
        "vera",
        "--ranks",
        4,
        "--steps",
        1,
        "--batch_size",
        1,
    ]
    common += ["--lrs", 1e-3, 1e-1, "--encoder", "embedded"]
    with pytest.raises(SystemExit):
        command(*common, "--part", "test", "--tuned")
    assert "no finished runs" in capsys.readouterr().err
    planned = command(*common, "--dry_run")
    assert "vera cannot have 68,096 parameters" in planned
    assert "2 runs:" in planned
    assert not (tmp_path / "out").exists()
    assert command(*common).count("lora-r4") == 2
    assert command(*common).count("lora-r4") == 0  # they are done
    assert command(*common, "--part", "test", "--tuned").count("lora-r4") == 1
    with pytest.raises(SystemExit):
        command("--report", "--baseline", "lora", "gralora k2")
    assert "no run is of the baseline 'gralora k2'; there are: lora" in capsys.readouterr().err
    for among in (["--ranks", 8], ["--lrs", 1e-2], ["--steps", 7]):
        with pytest.raises(SystemExit):
            command("--report", *among)
        assert "none of the 3 runs" in capsys.readouterr().err
    wrongs = [
        (["--seeds", 0, 0], "--seeds names one twice"),
        (["--encoder", "embeded", "--dry_run"], "'embedded'"),
        (["--steps", 0], "above 0"),
    ]
    for wrong, words in wrongs:
        with pytest.raises(SystemExit):
            command(*common, *wrong)
        assert words in capsys.readouterr().err
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "front.png").touch()  # of a report with --front, which this one is not
    printed = command("--report", "--keep", tmp_path / "kept").partition("plots:")[0]
    assert "| test " in printed
    assert {p.name for p in (tmp_path / "kept").iterdir()} == {
        "runs.jsonl",
        "table.md",
        "score-rank.png",
        "score-parameters.png",
        "loss.png",
    }
    assert command("--output", tmp_path / "kept", "--report").startswith(printed)
    line = json.loads((tmp_path / "out" / RESULTS).read_text().splitlines()[0])
    line["run"]["steps"] = 2
    with open(tmp_path / "out" / RESULTS, "a") as file:
        file.write(json.dumps(line) + "\n")
    with pytest.raises(SystemExit):
        command("--report")
    assert "these runs have 1 and 2 steps: choose with --steps" in capsys.readouterr().err
    assert command("--report", "--steps", 1).startswith(printed)


def test_subjects_are_a_column_of_the_table(tmp_path, monkeypatch, capsys):
    (tmp_path / "prompts.txt").write_text("a {} at night\n")
    for name in ("my_cat", "toy"):
        shutil.copytree(EXAMPLE, tmp_path / name, ignore=shutil.ignore_patterns("*.txt", "*.md"))
    given = [
        "--subjects",
        tmp_path / "my_cat",
        f"{tmp_path / 'toy'}=car",
        "--prompts",
        tmp_path / "prompts.txt",
        "--seeds",
        0,
        1,
        "--dry_run",
    ]
    given = ["--output", str(tmp_path / "out"), *map(str, given)]
    runs, benches = compare.plan(compare.arguments(given))
    assert Counter((run["subject"], run["method"]) for run in runs) == {
        (s, m): 2 for s in ("my_cat", "toy") for m in ("lora", "gralora")
    }
    assert {s: (b.config.instance_prompt, b.prompts) for s, b in benches.items()} == {
        "my_cat": ("a photo of sks my cat", ["a my cat at night"]), "toy": ("a photo of sks car", ["a car at night"])
    }  # fmt: skip
    assert len({run["setting"] for run in runs}) == 2
    with pytest.raises(ConfigError, match="--strengths goes with"):
        compare.plan(compare.arguments([*given, "--strengths", "0.5"]))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--keep", "x"], "--keep goes with --report"),
        (["--methods", "vera"], "no run is left"),
        (["--prompts", "absent.txt"], "absent.txt"),
        (["--prompts", "empty.txt"], "empty.txt holds no prompts"),
        (["--num_inference_steps", 0], "num_inference_steps"),
    ],
)
def test_what_a_sweep_refuses(given, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n")
    prompts = (
        [] if "--prompts" in given else ["--prompts", ROOT / "docs" / "experiments" / "subject_prompts.txt"]
    )
    with pytest.raises(SystemExit) as exit:
        main(["compare", "--output", "out", *map(str, [*prompts, *given])])
    assert exit.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not Path("out").exists()


def experiment(tmp_path, *names, python="") -> tuple[int, list[list[str]]]:
    """Exit code and commands of scripts/experiments.sh, each of which runs `python` and is written down."""
    for folder in ("sticker", "dog"):
        (tmp_path / folder).mkdir(exist_ok=True)
    writes = f"with open({str(tmp_path / 'log')!r}, 'a') as f: print(json.dumps(sys.argv[1:]), file=f)"
    (tmp_path / "python.py").write_text(
        f"import json, sys\nif sys.argv[1] == '-c': sys.exit()\n{writes}\n{python}"
    )  # -c asks for packages
    env = os.environ | dict(
        PYTHON=f"{sys.executable} {tmp_path / 'python.py'}",
        STATE=str(tmp_path),
        DREAMBOOTH=str(tmp_path),
        WORKERS="2",
    )
    done = subprocess.run(
        ["bash", SCRIPTS / "experiments.sh", *names], env=env, capture_output=True, text=True
    )
    log = tmp_path / "log"
    return done.returncode, [
        json.loads(line) for line in log.read_text().splitlines()
    ] if log.exists() else []


def test_each_experiment_is_one_command_whose_sweeps_parse(tmp_path, monkeypatch):
    code, commands = experiment(tmp_path, "style", "k", "heads", "dreambooth", "gora")
    assert code == 0
    folders = {}
    for *name, command, options in ([*c[:2], c[2], c[3:]] for c in commands):
        assert (name, command) == (["-m", "gralora_diffusion"], "compare")
        args = compare.arguments(options)
        folders.setdefault(args.output.name, []).append("report" if args.report else args.part)
        assert args.keep is None or args.keep.parent == Path("docs/experiments/results")
    assert all(
        times % 2 == 0 for times in Counter(json.dumps(c) for c in commands if "--report" not in c).values()
    )  # once for each worker
    assert {name: parts[-1] for name, parts in folders.items()} == {
        "style": "report", "heads": "report", "dreambooth": "report", "gora": "report", "gora-subjects": "report", "gora-rates": "validation"
    }  # fmt: skip
    assert all(
        parts.index("test") > parts.index("validation")
        for name, parts in folders.items()
        if name in ("style", "heads")
    )


def test_a_chain_of_sweeps_ends_where_one_stops(tmp_path):
    code, commands = experiment(tmp_path, "heads", python="sys.exit(130)")
    assert (code, len(commands)) == (130, 2)
    assert experiment(tmp_path, "head")[0] == 2
    assert experiment(tmp_path)[0] == 2


def test_names_tell_runs_apart():
    assert len({name_of(run) for run in RUNS}) == 12
    assert name_of(RUNS[0]).startswith("lora-r4-lr0.001-seed0-")
    assert Spec("lora", 4).k is None
