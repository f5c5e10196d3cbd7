"""The page's own modules, without a browser: the form, the folders, the runs, the image sets."""

import ast
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
from helpers import GRALORA
from PIL import Image

import gralora_diffusion.ui
from gralora_diffusion.command_line import parse
from gralora_diffusion.config import GROUPS, AdapterConfig, TrainConfig
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui import config_form as form
from gralora_diffusion.ui import image_sets as image_sets
from gralora_diffusion.ui.run_queue import RunQueue, clean, log_tail
from gralora_diffusion.ui.workspace import BUNDLED, Workspace, new_name

UI = Path(gralora_diffusion.ui.__file__).parent
HOSTILE = [
    "--push_to_hub",
    "$(id)",
    ";rm -rf /",
    "a'b\"c",
    "`id`",
    "%2e%2e",
    "-x=1",
    "{0}",
    "\\n",
    "*",
    "é 机器人",
    "<img src=x onerror=alert(1)>",
    "True",
]


@pytest.fixture
def home(tmp_path):
    return Workspace(tmp_path)


def shown(**values):
    """The form as it is at first, but for these."""
    blank = {o.name: "" if o.default in (None, {}) else o.default for o in form.OPTIONS}
    return blank | dict(instance_data_dir=BUNDLED, pretrained_model_name_or_path="embedded") | values


def test_every_option_of_the_command_line_is_on_the_form():
    every = {f.name for cls in (AdapterConfig, TrainConfig) for f in fields(cls)} - {"adapter"}
    assert {o.name for o in form.OPTIONS} == every - set(form.ELSEWHERE)
    assert [o.name for o in form.OPTIONS[: len(form.FRONT)]] == list(form.FRONT)
    assert {o.group for o in form.OPTIONS} <= set(GROUPS)


def test_an_untouched_form_is_the_default_config(home):
    assert form.to_config(shown(), home) == TrainConfig()


@pytest.mark.parametrize("preset", form.PRESETS)
def test_form_command_and_config_say_the_same(preset, home):
    values = form.with_preset(
        shown(instance_prompt="a photo of sks dog", rank_pattern='{"attn2": 8}', prodigy_decouple=True),
        preset,
        home,
    )
    config = form.to_config(values, home, "dog-1")
    assert parse("", form.arguments(config)) == config
    words = shlex.split(form.command(config).replace("\\\n", " "))
    assert words[:2] == ["gralora", "train"]
    assert parse("", words[2:]) == config
    assert form.to_config(form.from_config(config, home), home, "dog-1") == config


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_is_one_argument_verbatim(text, home):
    config = form.to_config(shown(instance_prompt=text, validation_prompt=text), home, "run-1")
    assert f"--instance_prompt={text}" in form.arguments(config)
    parsed = parse("", form.arguments(config))
    assert (parsed.instance_prompt, parsed.validation_prompt, parsed.push_to_hub) == (text, text, False)
    assert parse("", shlex.split(form.command(config).replace("\\\n", " "))[2:]) == parsed


@pytest.mark.parametrize(
    ("values", "name", "words"),
    [
        (dict(max_train_steps="0"), "max_train_steps", "at least 1"),
        (dict(max_train_steps="many"), "max_train_steps", "a number"),
        (dict(rank=2.5), "rank", "whole number"),
        (dict(learning_rate="nan"), "learning_rate", "finite"),
        (dict(max_train_steps="inf"), "max_train_steps", "finite"),
        (dict(resolution="100"), "resolution", "divisible by 8"),
        (dict(lr_warmup_steps=5), "lr_warmup_steps", "no effect"),
        (dict(method="lora", k="4"), "k", "belong to GraLoRA"),
        (dict(method="dora"), "method", "one of"),
        (dict(rank_pattern="[1]"), "rank_pattern", "JSON object"),
        (dict(instance_prompt="a\nb"), "instance_prompt", "one line"),
        (dict(instance_prompt="x" * 5000), "instance_prompt", "at most"),
        (dict(instance_data_dir="../../etc"), "instance_data_dir", "no set of images"),
        (dict(logging_dir="../x"), "logging_dir", "plain name"),
        (dict(cache_dir="/etc"), "cache_dir", "plain name"),
        *((dict(pretrained_model_name_or_path=base), "pretrained_model_name_or_path", "hub id") for base in (
            "http://evil.example/x", "file:///etc", "../../etc", "/etc/passwd", "--push_to_hub", "a/b/c", "models/../x", "x.ckpt", "a/..", "runs/x")),
    ],
)  # fmt: skip
def test_a_mistake_is_said_at_its_field(values, name, words, home):
    with pytest.raises(ConfigError) as error:
        form.to_config(shown(**values), home)
    assert error.value.option == name
    assert words in str(error.value)


def test_a_token_is_never_in_the_config_or_the_command(home):
    config = form.to_config(shown(hub_token="hf_secret", push_to_hub=True), home, "run-1")
    assert "hf_secret" not in form.command(config) + " ".join(form.arguments(config)) + repr(config)


BAD_NAMES = [
    "../x",
    "/etc/x",
    "a/b",
    "..",
    "",
    "a\0b",
    "a\nb",
    "CON",
    "nul.txt",
    "x" * 300,
    "--help",
    "$(id)",
    ";rm",
    "%2e%2e",
    "a b",
    ".hidden",
    "a.",
    "a..b",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_is_no_folder_name_is_refused(name):
    with pytest.raises(ConfigError, match="cannot be named"):
        new_name(name, "a run")


def test_only_what_is_there_can_be_named(home, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "config.json").write_text("{}")
    (home.runs / "link").symlink_to(tmp_path / "outside")
    (home.runs / "true").mkdir()
    (home.runs / "true" / "config.json").write_text("{}")
    (home.runs / "true" / "adapter.safetensors").symlink_to("/etc/passwd")
    assert home.run_names() == ["true"]
    assert home.adapter_names() == []
    for ask in (home.run, home.adapter, home.image_set):
        for name in ("link", "../outside", "/etc", "true/../link", "true/adapter.safetensors"):
            with pytest.raises(ConfigError):
                ask(name)


def write_job(home, name, **job):
    (home.runs / name).mkdir()
    (home.runs / name / "job.json").write_text(
        json.dumps(dict(config={}, created=time.time(), state="started") | job)
    )
    return home.runs / name


def test_a_process_with_the_same_number_is_not_the_run(home):
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        write_job(home, "old", pid=sleeper.pid, born=time.time() - 9999, started=time.time() - 9999)
        work = RunQueue(home)
        assert work.state(home.runs / "old")["state"] == "failed"
        assert "not at work" in work.stop("old")
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_hostile_job_fails_and_the_queue_goes_on(home):
    (home.runs / "evil").mkdir()
    (home.runs / "evil" / "job.json").write_text(
        json.dumps(dict(config=dict(no_such_option=1), created=1.0, state="queued"))
    )
    for name, text in (("deep", "[" * 100_000), ("list", "[1]"), ("empty", "")):
        (home.runs / name).mkdir()
        (home.runs / name / "job.json").write_text(text)
    work = RunQueue(home)
    assert "cannot be started" in work.turn()
    assert work.state(home.runs / "evil")["state"] == "failed"
    assert work.turn() == ""
    assert work.state(home.runs / "deep")["state"] == "unknown"
    with pytest.raises(ConfigError):
        work.resume("deep")


def test_a_run_is_added_once(home):
    work = RunQueue(home)
    write_job(
        home,
        "busy",
        pid=os.getpid(),
        born=__import__("psutil").Process().create_time(),
        started=time.time() + 5,
    )
    assert "1 in the queue, after busy" in work.add("one", TrainConfig(), token="hf_secret")
    assert "hf_secret" not in (home.runs / "one" / "job.json").read_text()
    with pytest.raises(ConfigError, match="there already"):
        work.add("one", TrainConfig())
    assert work.stop("one") == "one is out of the queue"
    assert work.state(home.runs / "one")["state"] == "withdrawn"


def test_a27_a_full_disk_is_a_sentence_and_leaves_nothing_half_written(home):
    from gralora_diffusion.ui.handlers import said

    limit, before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
        with pytest.raises(OSError, match="File too large") as error:
            RunQueue(home).add("one", TrainConfig())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert "could not be read or written" in said(error.value).message
    assert home.run_names() == []


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


def image(path, size=(80, 60), mode="RGB", **kwargs):
    Image.new(mode, size, 200 if mode in ("L", "I;16") else None or 0).save(path, **kwargs)
    return path


def test_every_upload_is_judged_by_itself(home, tmp_path):
    frames = [Image.new("RGB", (64, 64), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    turned = Image.Exif()
    turned[274] = 6
    good = [
        image(tmp_path / "plain.png"),
        image(tmp_path / "cmyk.jpg", mode="CMYK"),
        image(tmp_path / "deep.png", mode="I;16"),
    ]
    good += [
        image(tmp_path / "turned.jpg", exif=turned),
        tmp_path / "moving.gif",
        image(tmp_path / "=cmd ü.png"),
    ]
    (tmp_path / "page.png").write_text("<html><script>alert(1)</script></html>")
    (tmp_path / "cut.png").write_bytes((tmp_path / "plain.png").read_bytes()[:60])
    (tmp_path / "drawing.svg").write_text("<svg onload='alert(1)'/>")
    (tmp_path / "bundle.zip").write_bytes(b"PK\3\4")
    (tmp_path / "empty.png").touch()
    bad = [tmp_path / n for n in ("page.png", "cut.png", "drawing.svg", "bundle.zip", "empty.png")]
    bad.append(image(tmp_path / "huge.png", (20_000, 20_000), "1"))
    name = image_sets.create(home, "mine")
    notes = image_sets.add(home, name, [*good, *bad])
    assert len(image_sets.images_of(home.images / name)) == len(good)
    assert sorted(n.split(" was left out")[0] for n in notes if "left out" in n) == sorted(
        p.name for p in bad
    )
    assert any(n.startswith("moving.gif: it is animated") for n in notes)
    assert all(p.name.isascii() for p in (home.images / name).iterdir())
    found = image_sets.checks(home, name, 64)
    assert any(what.startswith("80 x 60 pixels, less than 64") for _, what, _ in found)
    assert all(len(line) == 3 and line[2] for line in found)


def test_captions_are_saved_and_foreign_names_refused(home, tmp_path):
    name = image_sets.create(home, "mine")
    image_sets.add(home, name, [image(tmp_path / "a.png"), image(tmp_path / "b.png", (64, 64))])
    assert image_sets.save_captions(home, name, {"a.png": " a photo\nof sks dog ", "b.png": ""}) == ["a.png"]
    assert (home.images / name / "a.txt").read_text() == "a photo of sks dog\n"
    assert not (home.images / name / "b.txt").exists()
    for file in ("../../x.png", "/etc/passwd", "c.png"):
        with pytest.raises(ConfigError, match="no image named"):
            image_sets.save_captions(home, name, {file: "x"})
    with pytest.raises(ConfigError, match="stay as they are"):
        image_sets.save_captions(home, BUNDLED, {"00.png": "x"})
    assert image_sets.copy(home, BUNDLED, "copied") == "copied"
    assert len(image_sets.images_of(home.images / "copied")) == 6


def test_a29_cells_are_no_formulas(home):
    import csv

    from gralora_diffusion.ui.grid import save_table

    paths = save_table(home, ["name"], [["=HYPERLINK(1)"], ["@SUM"], ["-1+1"], ["+1"], ["plain"], [3.5]])
    with open(paths[0], newline="") as file:
        cells = [row[0] for row in csv.reader(file)][1:]
    assert cells == ["'=HYPERLINK(1)", "'@SUM", "'-1+1", "'+1", "plain", "3.5"]


def test_a3_the_page_imports_no_training_and_runs_nothing_it_is_given():
    files = list(UI.glob("*.py"))
    assert len(files) > 20
    for path in files:
        text = path.read_text()
        for word in (
            "import pickle",
            "shell=True",
            "os.system",
            " eval(",
            " exec(",
            "trust_remote_code",
            "weights_only=False",
            "yaml.load",
            "GoogleFont",
        ):
            assert word not in text, (path, word)
        modules = {n.module for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom)}
        assert "gralora_diffusion.training.train" not in modules


@pytest.mark.parametrize(
    "arguments",
    [["--listen", "0.0.0.0"], ["--share"], ["--auth", "nopassword"], ["--port", "99999"], ["--prot", "1"]],
)
def test_a23_an_open_page_needs_a_password(arguments, tmp_path):
    done = subprocess.run(
        [*GRALORA, "ui", *arguments, "--home", tmp_path / "h"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "h").exists()
