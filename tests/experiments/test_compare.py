"""gralora compare: what it plans, runs, resumes, reports and refuses; and scripts/experiments.sh."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from helpers import ROOT, SCRIPTS

from gralora_diffusion import TrainConfig
from gralora_diffusion.cli import compare
from gralora_diffusion.cli.main import main
from gralora_diffusion.console import only_options, usable
from gralora_diffusion.data.dataset import EXAMPLE
from gralora_diffusion.data.image_folder import TrainingImage
from gralora_diffusion.experiments.methods import METHODS
from gralora_diffusion.experiments.plan import SweepForecast, operations, plan_sweep, setting_of, split
from gralora_diffusion.experiments.results import RESULTS
from gralora_diffusion.options import ConfigError


def test_help_names_every_method_and_loads_no_torch(capsys):
    with pytest.raises(SystemExit):
        compare.arguments(["--help"])
    named = re.split(r"[\s,]+", capsys.readouterr().out.partition("methods: ")[2])
    assert set(METHODS) <= set(named)
    for command in ("compare", "evaluate", "entanglement"):
        code = f"import sys, gralora_diffusion.cli.{command}; print({{'torch', 'scipy'}} & set(sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.strip() == "set()", command


def test_the_setting_of_runs_is_that_of_their_images_wherever_they_are():
    image = TrainingImage(Path("a.png"), "x", "", (64, 64))
    there = TrainConfig(instance_data_dir="/there/images")
    assert setting_of(TrainConfig(instance_data_dir="images"), [image]) == setting_of(there, [image])
    assert setting_of(there, [image]) != setting_of(there, [])


def test_the_split_is_fixed_and_its_parts_are_apart():
    images = [TrainingImage(Path(f"{i}.png"), str(i), "", (64, 64)) for i in range(30)]
    training, test = split(images, "test")
    same, validation = split(images, "validation")
    assert (len(training), len(test), len(validation)) == (24, 3, 3)
    assert training == same
    assert len({image.path for image in (*training, *test, *validation)}) == 30
    with pytest.raises(ConfigError, match="two tenths of 9 images cannot be held out"):
        split(images[:9], "test")


@pytest.fixture
def command(tmp_path, capsys):
    """command(*arguments) -> what gralora compare prints; (code, error) after a failure with fails=True."""

    def run(*arguments, fails=False):
        argv = ["compare", "--output", str(tmp_path / "out"), *map(str, arguments)]
        if not fails:
            main(argv)
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as exit:
            main(argv)
        return exit.value.code, capsys.readouterr().err

    return run


@pytest.fixture
def sweep_options(tmp_path) -> list:
    (tmp_path / "prompts.txt").write_text("a photo of sks robot at night\n\n")
    options = ["--prompts", tmp_path / "prompts.txt", "--methods", "lora", "vera", "--ranks", 4]
    return [*options, "--steps", 1, "--batch_size", 1, "--lrs", 1e-3, 1e-1, "--encoder", "embedded"]


@pytest.mark.slow
def test_the_command_compares_tunes_resumes_and_reports(tmp_path, command, sweep_options):
    assert "no finished runs" in command(*sweep_options, "--part", "test", "--tuned", fails=True)[1]
    planned = command(*sweep_options, "--dry_run")
    assert "vera cannot have 68,096 parameters" in planned
    assert "6 training images, 1 generated in each run\n2 runs: " in planned
    assert not (tmp_path / "out").exists()
    assert command(*sweep_options).count("lora-r4") == 2
    assert command(*sweep_options).count("lora-r4") == 0  # they are done
    assert command(*sweep_options, "--part", "test", "--tuned").count("lora-r4") == 1
    reports_of_three_runs(tmp_path, command)
    refused = [
        (["--seeds", 0, 0], "--seeds has a value twice"),
        (["--encoder", "embeded", "--dry_run"], "'embedded'"),
        (["--steps", 0], "above 0"),
        (["--batch_size", 0], "compare: --batch_size must be above 0"),
    ]
    for wrong, words in refused:
        assert words in command(*sweep_options, *wrong, fails=True)[1]


def test_advice_names_no_option_that_the_command_lacks(tmp_path, command, capsys):
    images, prompts = tmp_path / "images", tmp_path / "prompts.txt"
    shutil.copytree(EXAMPLE, images)
    (images / "00.txt").write_text("a {red|blue} robot\nand more\n")
    prompts.write_text("a robot\n")
    options = ["--instance_data_dir", images, "--prompts", prompts, "--dry_run"]
    (images / "bad.png").write_text("no image")
    error = command(*options, fails=True)[1]
    assert "repair or remove what is listed: bad.png (not an image, despite its name)" in error
    (images / "bad.png").unlink()
    assert main(["compare", "--output", str(tmp_path / "out"), *map(str, options)]) is None
    notes = capsys.readouterr().err
    assert "caption file in" in notes
    assert "in 1 caption: 00.png" in notes
    assert "--caption" not in notes
    ways = "free some space, name another folder with --latent_cache_dir, or use --no-cache_latents"
    with only_options(["output", "mixed_precision"]):
        assert usable(f"it cannot be written: {ways}") == "it cannot be written: free some space"
        assert usable("lower it, or use --mixed_precision no") == "lower it, or use --mixed_precision no"
    assert usable(ways) == ways


def reports_of_three_runs(tmp_path, command) -> None:
    error = command("--report", "--baseline", "lora", "gralora k2", fails=True)[1]
    assert "no run is of the baseline 'gralora k2'; the runs are of: lora" in error
    for among in (["--ranks", 8], ["--lrs", 1e-2], ["--steps", 7]):
        assert "holds 3 runs, and none is of" in command("--report", *among, fails=True)[1]
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "front.png").touch()  # of a report with --front, which this one is not
    printed = command("--report", "--keep", kept).partition("plots:")[0]
    assert "| test " in printed
    names = {"runs.jsonl", "table.md", "score-rank.png", "score-parameters.png", "loss.png"}
    assert {path.name for path in kept.iterdir()} == names
    assert command("--output", kept, "--report").startswith(printed)
    assert "**Score: copy, the embedded base's own" in command("--report", "--score", "copy")
    error = command("--report", "--score", "copying", fails=True)[1]
    assert "no run has the score 'copying'; known: copy, the embedded base's own" in error
    line = json.loads((tmp_path / "out" / RESULTS).read_text().splitlines()[0])
    line["run"]["steps"] = 2
    with open(tmp_path / "out" / RESULTS, "a") as file:
        file.write(json.dumps(line) + "\n")
    assert "these runs have 1 and 2 steps: choose one with --steps" in command("--report", fails=True)[1]
    assert command("--report", "--steps", 1).startswith(printed)


def test_subjects_are_a_column_of_the_table(tmp_path):
    (tmp_path / "prompts.txt").write_text("# at night\na {} at night\n")
    for name in ("my_cat", "toy"):
        shutil.copytree(EXAMPLE, tmp_path / name, ignore=shutil.ignore_patterns("*.txt", "*.md"))
    given = ["--output", tmp_path / "out", "--subjects", tmp_path / "my_cat", f"{tmp_path / 'toy'}=car"]
    given += ["--prompts", tmp_path / "prompts.txt", "--seeds", 0, 1, "--dry_run"]
    given = list(map(str, given))
    plan = plan_sweep(compare.arguments(given))
    times = Counter((run["subject"], run["method"]) for run in plan.runs)
    assert times == {(s, m): 2 for s in ("my_cat", "toy") for m in ("lora", "gralora")}
    found = {}
    for subject, experiment in plan.experiments.items():
        found[subject] = experiment.config.instance_prompt, experiment.prompts
    assert found == {
        "my_cat": ("a photo of sks my cat", ["a my cat at night"]),
        "toy": ("a photo of sks car", ["a car at night"]),
    }
    assert len({run["setting"] for run in plan.runs}) == 2
    with pytest.raises(ConfigError, match="--strengths works only with"):
        plan_sweep(compare.arguments([*given, "--strengths", "0.5"]))


def test_a_forecast_of_few_operations_is_not_zero():
    forecast = SweepForecast(1, 6, 1, training=6.2e7, sampling=3.4e15)
    counts = "1 run: 62 MFLOP of training, 3,400 TFLOP of sampling; 9 seconds on a GPU"
    assert counts in forecast.text()
    assert [operations(n) for n in (12.0, 2.5e9, 1e14)] == ["12 FLOP", "2.5 GFLOP", "100 TFLOP"]
    assert "less than a second on" in SweepForecast(1, 6, 1, 6e7, 6e7).text()


def test_the_help_names_whose_lora_is_the_baseline(capsys):
    with pytest.raises(SystemExit):
        compare.arguments(["--help"])
    text = " ".join(capsys.readouterr().out.partition("--baseline")[2].split())
    assert "(default: lora, which is PEFT's LoRA" in text


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--keep", "x"], "--keep needs --report"),
        (["--methods", "vera"], "no run is left"),
        (["--methods", "lorra"], "method is 'lorra'; it must be one of gralora, hybrid"),
        (["--prompts", "absent.txt"], "absent.txt"),
        (["--prompts", "empty.txt"], "empty.txt holds no prompts"),
        (["--num_inference_steps", 0], "num_inference_steps"),
        (
            ["--prompts", "class.txt"],
            "--prompts class.txt: {} in 'a {} at sea' stands for the class of --subj",
        ),
        (["--drift_prompts", "class.txt"], "write prompts without the subject"),
        (["--instance_prompt", "sks {}"], "--instance_prompt: {} in 'sks {}'"),
    ],
)
def test_what_a_sweep_refuses(given, sentence, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n")
    Path("class.txt").write_text("a robot\na {} at sea\n")
    if "--prompts" not in given:
        given = ["--prompts", ROOT / "docs" / "experiments" / "drift_prompts.txt", *given]
    code, error = command(*given, fails=True)
    assert code == 2
    assert sentence in error
    assert not Path("out").exists()


def experiment(tmp_path, *names, python="") -> tuple[int, list[list[str]]]:
    """Exit code and commands of scripts/experiments.sh, each of which runs `python` and is written down."""
    for folder in ("sticker", "dog"):
        (tmp_path / folder).mkdir(exist_ok=True)
    log = tmp_path / "log"
    stand_in = tmp_path / "python.py"
    stand_in.write_text(
        "import json, sys\n"
        "if sys.argv[1] == '-c': sys.exit()\n"  # which asks for packages
        f"with open({str(log)!r}, 'a') as f: print(json.dumps(sys.argv[1:]), file=f)\n"
        f"{python}"
    )
    state = dict(STATE=str(tmp_path), DREAMBOOTH=str(tmp_path), WORKERS="2")
    env = os.environ | state | dict(PYTHON=f"{sys.executable} {stand_in}")
    script = ["bash", SCRIPTS / "experiments.sh", *names]
    done = subprocess.run(script, env=env, capture_output=True, text=True)
    lines = log.read_text().splitlines() if log.exists() else []
    return done.returncode, [json.loads(line) for line in lines]


def test_each_experiment_is_one_command_whose_sweeps_parse(tmp_path):
    code, commands = experiment(tmp_path, "style", "k", "heads", "dreambooth", "gora")
    assert code == 0
    folders = {}
    for words in commands:
        assert words[:3] == ["-m", "gralora_diffusion", "compare"]
        args = compare.arguments(words[3:])
        folders.setdefault(args.output.name, []).append("report" if args.report else args.part)
        assert args.keep is None or (ROOT / args.keep / "table.md").is_file()
    times = Counter(json.dumps(words) for words in commands if "--report" not in words)
    assert all(number % 2 == 0 for number in times.values())  # once for each worker
    reported = ("style", "heads", "dreambooth", "gora", "gora-subjects")
    last = {name: parts[-1] for name, parts in folders.items()}
    assert last == dict.fromkeys(reported, "report") | {"gora-rates": "validation"}
    for name in ("style", "heads"):
        assert folders[name].index("test") > folders[name].index("validation")


def test_a_chain_of_sweeps_ends_where_one_stops(tmp_path):
    code, commands = experiment(tmp_path, "heads", python="sys.exit(130)")
    assert (code, len(commands)) == (130, 2)
    assert experiment(tmp_path, "head")[0] == 2
    assert experiment(tmp_path)[0] == 2
