"""Hostile names, texts and requests to the running page: each is refused or kept as data."""

import json
import os
import shutil
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from page_server import SECRET, end_runs, everything, refused, sample_request, until

from gralora_diffusion.ui.processes import birth_of

pytestmark = pytest.mark.browser
NAMES = [
    "../x",
    "/etc/x",
    "a/b",
    "..",
    "",
    "a\0b",
    "a\nb",
    "CON",
    "x" * 300,
    "--help",
    "$(id)",
    ";rm",
    "%2e%2e",
]


@pytest.mark.parametrize("name", NAMES)
def test_a1_run_names(page, name):
    before = everything(page.home)
    assert refused(page.call("start", *page.form(name=name)))
    assert everything(page.home) == before


@pytest.fixture
def queue(page):
    """A busy run holds the queue, so that nothing starts."""
    busy = page.home / "runs" / "busy"
    busy.mkdir()
    (busy / "job.json").write_text(
        json.dumps(
            dict(
                config={},
                created=time.time(),
                state="started",
                pid=os.getpid(),
                born=birth_of(os.getpid()),
                started=time.time() + 99,
            )
        )
    )
    yield
    shutil.rmtree(busy)


def queued(page, name, text):
    """The config that a prompt gives a run, which is then taken out of the queue."""
    answer = page.call("start", *page.form(name=name, instance_prompt=text))
    assert not refused(answer), answer
    job = json.loads((page.home / "runs" / name / "job.json").read_text())
    assert job["state"] == "queued"
    page.stop_run(name)
    assert json.loads((page.home / "runs" / name / "job.json").read_text())["state"] == "canceled"
    return job["config"]


@pytest.mark.parametrize("text", ["$(touch /tmp/owned)", "; touch /tmp/owned", "a' \"b`id`"])
def test_a2_texts_are_data(page, queue, text):
    assert queued(page, f"text-{zlib.crc32(text.encode())}", text)["instance_prompt"] == text
    assert not Path("/tmp/owned").exists()


def test_a4_a_prompt_is_no_option(page, queue):
    config = queued(page, "option", "--push_to_hub")
    assert (config["instance_prompt"], config["push_to_hub"]) == ("--push_to_hub", False)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "robot-1/../../x",
        "robot-1/adapter.safetensors",
        {"path": "/etc/passwd"},
        7,
        None,
        ["x"],
    ],
)
def test_a5_ids_are_not_paths(page, name):
    assert SECRET not in json.dumps(page.call("sample", *sample_request(name)))
    assert refused(page.call("export", name, ["native"], "", "fp16"))
    assert refused(page.call("compare", [name], "0, 1", "a robot", 0, 1, 1))


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc", "robot", "images/mine", None, 7, ["x"], {"path": "/etc/passwd"}]
)
def test_a5_datasets_images_and_models_are_named_from_lists(page, name):
    before = everything(page.home)
    cards = [*[name] * 12, *[True] * 12]
    asked = [
        (page.function_of("delete-0", "click"), [name, 0, name]),
        (page.function_of("undo-delete", "click"), [name, 0]),
        (page.function_of("delete-selected", "click"), [name, 0, *cards]),
        (page.function_of("delete-masks", "click"), [name, 0, *cards]),
        (page.function_of("put-before-selected", "click"), [name, "x", *cards]),
        (page.function_with("caption-prefix"), [name, name, "x", True]),
        (page.function_with("mask-threshold"), [name, "img-focus", 0.5, True]),
        (page.function_of("preview-crops", "click"), [name, "../64", False, False]),
        (page.function_of("use-settings", "click"), [name]),
        (page.function_of("favorite", "click"), [name, False]),
        (page.function_of("delete-image", "click"), ["true", name, False]),
        (page.function_of("blind-start", "click"), [[name], name, name]),
        (page.function_of("blind-vote-left", "click"), [name]),
        (page.function_of("blind-end", "click"), []),
    ]
    for number, data in asked:
        answer = page.send(number, data)
        assert SECRET not in json.dumps(answer)
        assert refused(answer), (number, answer)
    assert everything(page.home) == before


def test_a30_a_request_for_more_images_than_the_limit_is_refused_at_once(page):
    asked = sample_request("robot-1")
    asked[2], asked[3] = "a robot\n" * 16, 8
    answer = page.call("sample", *asked)
    assert "these are 128 images; the limit is 64" in answer["error"]
    answer = page.call("compare", ["robot-1"], "0, 1", "a robot\n" * 8, 0, 8, 1)
    assert "8 prompts x 1 adapter x 2 strengths x 8 seeds are too many" in answer["error"]
    asked[2] = "a" * 20_000
    assert "the prompt has 20000 characters" in page.call("sample", *asked)["error"]


@pytest.mark.parametrize(
    "base",
    ["http://evil.example/x", "file:///etc/passwd", "../../etc", "--push_to_hub", "/etc/passwd", "x.ckpt"],
)
def test_a18_the_base_is_a_name(page, base):
    assert refused(page.call("sample", *sample_request("robot-1", base)))
    answer = page.call("validate", *page.form(name="x", pretrained_model_name_or_path=base))
    assert refused(answer)
    assert "Hugging Face ID" in answer["error"]


def test_a6_every_endpoint_takes_junk(page):
    """The private ones too: each answers, and the page is as it was."""
    before = everything(page.home)
    start = page.config()
    for dependency in start["dependencies"]:
        if not dependency["backend_fn"]:
            continue
        for junk in (None, {"a": ["../../../etc/passwd"]}, "../../../etc/passwd", -(2**70)):
            answer = page.send(dependency["id"], [junk] * len(dependency["inputs"]))
            assert SECRET not in json.dumps(answer)
    assert page.alive()
    assert everything(page.home) == before
    assert page.config()["components"] == start["components"]


def test_a26_double_start_and_stop(page):
    """Ten starts of one name at once make one run; two stops are one, and the run ends as asked."""
    form = page.form(
        name="twice", max_train_steps="2000", rank=8, k="1", train_batch_size="1", num_inference_steps=1
    )
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: page.call("start", *form), range(10)))
    assert sum(not refused(answer) for answer in answers) == 1
    run = page.home / "runs" / "twice"
    until(
        lambda: (run / "metrics.jsonl").is_file() and (run / "metrics.jsonl").read_text().count("\n") > 1,
        "the first step",
    )
    for _ in range(2):
        page.stop_run("twice")
    until(lambda: json.loads((run / "status.json").read_text())["state"] == "stopped", "the run is stopped")
    steps = (run / "metrics.jsonl").read_text().count("\n")
    assert (run / f"checkpoint-{steps}").is_dir()
    shutil.rmtree(run)


def test_a28_tokens_stay_out(page):
    token = "hf_averysecrettoken"
    answer = page.call(
        "start",
        *page.form(
            name="with-token", hub_token=token, max_train_steps="1", skip_final_inference=True, rank=8
        ),
    )
    assert not refused(answer), answer
    page.stop_run("with-token")
    assert token not in json.dumps(answer)
    for path in page.home.rglob("*"):
        if path.is_file():
            assert token.encode() not in path.read_bytes(), path
    until(lambda: "with-token" in json.dumps(page.call("list_runs")), "it is listed")
    end_runs(page.home)
