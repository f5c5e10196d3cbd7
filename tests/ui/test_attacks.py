"""What a hostile page, client or file tries, against the running server: each is refused, and the page stays alive."""

import json
import pickle
import shutil
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from page_server import Page, end_runs, until
from PIL import Image

pytestmark = pytest.mark.browser
SECRET = "root:x:0:0"


@pytest.fixture(scope="module")
def page(tmp_path_factory, finished_run):
    home = tmp_path_factory.mktemp("home") / "h"
    shutil.copytree(finished_run, home / "runs" / "robot-1")
    page = Page(home)
    yield page
    end_runs(home)
    page.close()


def refused(answer) -> bool:
    return isinstance(answer, dict) and "error" in answer


def everything(home: Path) -> set[str]:
    """All files in and beside HOME, but for what the page makes for itself."""
    return {
        str(p.relative_to(home.parent))
        for p in home.parent.rglob("*")
        if ".page" not in p.parts and p.name != "page.log"
    }


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
    me = psutil.Process()
    (busy / "job.json").write_text(
        json.dumps(
            dict(
                config={},
                created=time.time(),
                state="started",
                pid=me.pid,
                born=me.create_time(),
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
    page_stop(page, name)
    assert json.loads((page.home / "runs" / name / "job.json").read_text())["state"] == "withdrawn"
    return job["config"]


@pytest.mark.parametrize("text", ["$(touch /tmp/owned)", "; touch /tmp/owned", "a' \"b`id`"])
def test_a2_texts_are_data(page, queue, text):
    assert queued(page, f"text-{zlib.crc32(text.encode())}", text)["instance_prompt"] == text
    assert not Path("/tmp/owned").exists()


def test_a4_a_prompt_is_no_option(page, queue):
    config = queued(page, "option", "--push_to_hub")
    assert (config["instance_prompt"], config["push_to_hub"]) == ("--push_to_hub", False)


def page_stop(page, run):
    return page.client.post("/gradio_api/run/stop", json=dict(data=[run])).text


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
    assert SECRET not in json.dumps(
        page.call("sample", name, 1, "a robot", 1, 0, "none", 0, 1, None, "as in training", False)
    )
    assert refused(page.call("export", name, ["adapter"], "", "fp16"))
    assert refused(page.call("compare", [name], "0, 1", "a robot", 0, 1, 1))


@pytest.mark.parametrize(
    "base",
    ["http://evil.example/x", "file:///etc/passwd", "../../etc", "--push_to_hub", "/etc/passwd", "x.ckpt"],
)
def test_a18_the_base_is_a_name(page, base):
    assert refused(page.call("sample", "robot-1", 1, "a robot", 1, 0, "none", 0, 1, None, base, False))
    answer = page.call("validate", *page.form(pretrained_model_name_or_path=base))
    assert refused(answer)
    assert "hub id" in answer["error"]


def test_a6_every_endpoint_takes_junk(page):
    """The private ones too: each answers, and the page is as it was."""
    before, start = everything(page.home), page.config()
    for dependency in start["dependencies"]:
        if not dependency["backend_fn"]:
            continue
        for junk in (None, {"a": ["../../../etc/passwd"]}, "../../../etc/passwd", -(2**70)):
            answer = page.send(dependency["id"], [junk] * len(dependency["inputs"]))
            assert SECRET not in json.dumps(answer)
    assert page.alive()
    assert everything(page.home) == before
    assert page.config()["components"] == start["components"]


ROUTES = (
    "/gradio_api/file=",
    "/file=",
    "/gradio_api/file/",
    "/static/",
    "/gradio_api/proxy=",
    "/assets/",
    "/theme/",
)


def not_served(page, paths):
    for path in paths:
        for route in ROUTES:
            answer = page.client.get(f"{route}{path}")
            assert answer.status_code >= 300, (route, path)
            assert SECRET not in answer.text


def test_a7_files_of_the_machine_are_not_served(page):
    outside = [
        "/etc/passwd",
        "/proc/self/environ",
        "../../../../etc/passwd",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    ]
    not_served(page, [*outside, "http://evil.example/x", "file:///etc/passwd"])
    for place in ("/docs", "/redoc", "/openapi.json", "/gradio_api/mcp/sse", "/monitoring"):
        assert page.client.get(place).status_code >= 400, place


def test_a9_the_folder_it_was_started_in_is_not_served(page):
    not_served(page, [str(page.log), str(page.home / "page.log"), "page.log", ".", str(page.home)])


def test_a10_runs_are_not_served(page):
    run = page.home / "runs" / "robot-1"
    (run / "evil.html").write_text("<script>alert(1)</script>")
    (run / "evil.svg").write_text("<svg onload='alert(1)'/>")
    not_served(
        page,
        [
            str(run / name)
            for name in ("config.json", "report.html", "evil.html", "evil.svg", "adapter.safetensors")
        ],
    )


def test_a8_links_are_not_followed(page):
    run = page.home / "runs" / "linked"
    shutil.copytree(page.home / "runs" / "robot-1", run)
    (run / "samples" / "step-00000" / "99.png").symlink_to("/etc/passwd")
    (run / "samples" / "step-00007").symlink_to("/etc")
    (page.home / "runs" / "away").symlink_to("/etc")
    answer = page.call("export", "linked", ["samples"], "", "fp16")
    path = Path(answer[1][0]["path"])
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    assert names
    assert not any("99.png" in n or "00007" in n for n in names)
    (run / "adapter.safetensors").unlink()
    (run / "adapter.safetensors").symlink_to("/etc/passwd")
    assert refused(page.call("export", "linked", ["adapter"], "", "fp16"))
    assert "away" not in json.dumps(page.call("list_runs"))
    shutil.rmtree(run)
    (page.home / "runs" / "away").unlink()


def by_element(page, target: str, event: str) -> int:
    """The number of the function that an event of the element with this id calls."""
    config = page.config()
    number = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == target)
    return next(
        d["id"]
        for d in config["dependencies"]
        if [number, event] in [list(t) for t in d["targets"]] and d["backend_fn"]
    )


def test_a11_too_large_and_too_many_pixels(page, tmp_path):
    (tmp_path / "large.png").write_bytes(b"\0" * 51_000_000)
    sent = page.client.post(
        "/gradio_api/upload", files=[("files", ("large.png", (tmp_path / "large.png").read_bytes()))]
    )
    assert sent.status_code == 413
    Image.new("1", (20_000, 20_000)).save(tmp_path / "wide.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "good.png")
    answer = page.send(
        by_element(page, "drop", "upload"),
        [page.upload(tmp_path / "wide.png", tmp_path / "good.png"), "robot"],
    )
    assert "wide.png was left out" in json.dumps(answer)
    assert [p.name for p in page.home.glob("images/*/*.png")] == ["good.png"]
    shutil.rmtree(next(page.home.glob("images/*")))


def test_a12_only_images_become_images(page, tmp_path):
    """HTML and cut files are named and left out; CMYK, 16 bit, an animation and a turned photograph are kept."""
    image = Image.linear_gradient("L").resize((96, 64)).convert("RGB")
    image.save(tmp_path / "good.png")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(np.linspace(0, 65535, 64 * 96).reshape(64, 96).astype(np.uint16)).save(
        tmp_path / "deep.png"
    )
    image.save(tmp_path / "moving.gif", save_all=True, append_images=[image.rotate(90)])
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=turned)
    (tmp_path / "page.png").write_text("<html>")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:50])
    names = ("page.png", "cut.png", "good.png", "cmyk.jpg", "deep.png", "moving.gif", "turned.jpg")
    answer = page.send(
        by_element(page, "drop", "upload"), [page.upload(*(tmp_path / n for n in names)), "robot"]
    )
    assert "page.png was left out" in json.dumps(answer)
    assert "cut.png was left out" in json.dumps(answer)
    kept = {p.stem for p in page.home.glob("images/*/*") if p.suffix != ".txt"}
    assert kept == {"good", "cmyk", "deep", "moving", "turned"}
    shutil.rmtree(next(page.home.glob("images/*")))


def test_a13_nothing_is_unpacked(page, tmp_path):
    with zipfile.ZipFile(tmp_path / "slip.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../slipped.png", b"x")
        archive.writestr("bomb.png", bytes(50_000_000))
    before = everything(page.home)
    assert refused(
        page.send(by_element(page, "drop", "upload"), [page.upload(tmp_path / "slip.zip"), "robot"])
    )
    assert everything(page.home) == before
    assert not list(page.home.parent.rglob("slipped.png"))


class Harm:
    def __reduce__(self):
        return Path.touch, (HARMED,)


HARMED = Path("/tmp/gralora-page-was-harmed")


def test_a14_pickles_are_never_read(page, tmp_path):
    harmful = pickle.dumps(Harm())
    function = by_element(page, "add-adapter", "upload")
    for name in ("x.ckpt", "x.pt", "x.bin", "x.pkl", "x.safetensors"):
        (tmp_path / name).write_bytes(harmful)
        assert refused(
            page.send(function, [page.upload(tmp_path / name)[0], "none", "as in training", ""])
        ), name
    assert not HARMED.exists()
    assert not list(page.home.glob("adapters/*"))


def test_a16_foreign_checkpoints_are_never_unpickled(page):
    harmful = pickle.dumps(Harm())
    foreign = page.home / "runs" / "foreign"
    (foreign / "checkpoint-5").mkdir(parents=True)
    for name in (
        "custom_checkpoint_0.pkl",
        "random_states_0.pkl",
        "optimizer.bin",
        "scheduler.bin",
        "adapter.safetensors",
    ):
        (foreign / "checkpoint-5" / name).write_bytes(harmful)
    (foreign / "checkpoint-5" / "manifest.json").write_text(json.dumps(dict(step=5, files={})))
    shutil.copy(page.home / "runs" / "robot-1" / "config.json", foreign)
    assert refused(page.call("export", "foreign/checkpoint-5", ["adapter"], "", "fp16"))
    assert refused(
        page.call("sample", "foreign/checkpoint-5", 1, "a robot", 1, 0, "none", 0, 1, None, "embedded", False)
    )
    shutil.rmtree(foreign)
    assert not HARMED.exists()


CONFIGS = [
    "[" * 100_000,
    "[1]",
    "",
    '{"adapter": {"method": "gralora", "rank": "x"}}',
    '{"no_such": 1}',
    '{"output_dir": {"a": []}}',
]
CONFIGS += ['{"instance_data_dir": "/etc"}', '{"pretrained_model_name_or_path": "/etc"}']


@pytest.mark.parametrize("text", CONFIGS, ids=range(len(CONFIGS)))
def test_a17_hostile_config_files_are_refused(page, tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert refused(
        page.send(by_element(page, "load-config", "upload"), [page.upload(tmp_path / "config.json")[0]])
    )


@pytest.mark.parametrize("text", CONFIGS, ids=range(len(CONFIGS)))
def test_a15_a_folder_of_hostile_files_is_a_run_like_any_other(page, text):
    run = page.home / "runs" / "strange"
    run.mkdir()
    try:
        for name in ("config.json", "adapter_config.json", "status.json", "metrics.jsonl", "job.json"):
            (run / name).write_text(text)
        assert "strange" in json.dumps(page.call("list_runs"))
        assert "strange" in json.dumps(
            page.send(by_element(page, "smoothing", "release"), ["strange", 0.5, None])
        )
        assert "error" not in page.client.post("/gradio_api/run/status", json=dict(data=[None])).json()
    finally:
        shutil.rmtree(run)


def test_a19_foreign_names_of_this_machine(page):
    for host in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example", ""):
        assert page.client.get("/", headers={"host": host}).status_code == 400, host


def test_a20_foreign_pages(page):
    joined = dict(data=["x"], fn_index=0, session_hash="x")
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": page.url.replace("127", "128")},
        {"sec-fetch-site": "cross-site"},
    ):
        for place in ("/gradio_api/queue/join", "/gradio_api/run/stop", "/gradio_api/upload", "/login"):
            assert page.client.post(place, json=joined, headers=headers).status_code == 403, (place, headers)
    assert (
        page.client.post(
            "/gradio_api/run/stop", json=dict(data=[None]), headers={"origin": page.url}
        ).status_code
        != 403
    )


def test_headers(page):
    headers = page.client.get("/").headers
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "http" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


def test_a21_passwords_are_slow_to_guess_and_everything_needs_one(tmp_path):
    page = Page(tmp_path / "h", "--listen", "127.0.0.1", "--auth", "ann:a good password")
    try:
        for place in ("/config", "/gradio_api/info", "/gradio_api/file=/etc/passwd"):
            assert page.client.get(place).status_code >= 400, place
        assert (
            page.client.post(
                "/gradio_api/queue/join", json=dict(data=[], fn_index=0, session_hash="x")
            ).status_code
            == 401
        )
        codes = [
            page.client.post("/login", data=dict(username="ann", password=f"guess {i}")).status_code
            for i in range(30)
        ]
        assert codes[:5] == [400] * 5
        assert codes[5:] == [429] * 25
        assert (
            page.client.post("/login", data=dict(username="ann", password="a good password")).status_code
            == 429
        )
        assert "a good password" not in page.log.read_text()
    finally:
        page.close()


def test_a25_strange_logs(page):
    run = page.home / "runs" / "noisy"
    shutil.copytree(page.home / "runs" / "robot-1", run)
    (run / "log.txt").write_bytes(b"y" * 30_000_000 + b"\n\x1b]0;owned\x07\x1b[31mred\nlast\n")
    function = by_element(page, "smoothing", "release")
    answer = page.send(function, ["noisy", 0.5, None])
    text = json.dumps(answer)
    assert "red\\nlast" in text
    assert len(text) < 200_000
    assert "\\u001b" not in text
    shutil.rmtree(run)


def test_a27_a_run_that_goes_while_it_is_watched(page):
    run, function = page.home / "runs" / "going", by_element(page, "smoothing", "release")
    shutil.copytree(page.home / "runs" / "robot-1", run)
    assert "going" in json.dumps(page.send(function, ["going", 0.5, None]))
    shutil.rmtree(run)
    assert "going" not in json.dumps(page.send(function, ["going", 0.5, None]))
    assert page.alive()


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
        page_stop(page, "twice")
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
    page_stop(page, "with-token")
    assert token not in json.dumps(answer)
    for path in page.home.rglob("*"):
        if path.is_file():
            assert token.encode() not in path.read_bytes(), path
    until(lambda: "with-token" in json.dumps(page.call("list_runs")), "it is listed")
    end_runs(page.home)


def test_a30_forty_samplings_are_bounded(page):
    """At most 32 wait; the others are told so at once; memory is back to where it was after one sampling."""
    asked = ["robot-1", 1, "a robot", 1, 0, "none", 0, 1, None, "as in training", False]
    assert not refused(page.call("sample", *asked))
    process = psutil.Process(page.process.pid)
    before = process.memory_info().rss

    def ask(_):
        try:
            return page.call("sample", *asked)
        except (
            httpx.ReadError
        ):  # of forty connections at once the system may reset one; that is no answer of the page
            return page.call("sample", *asked)

    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(ask, range(40)))
    full = [a for a in answers if refused(a)]
    assert all("Queue is full" in json.dumps(a) for a in full), full[:1]
    assert len(answers) - len(full) >= 32
    assert page.alive()
    assert process.memory_info().rss < before + 150e6
    assert httpx.get(page.url).status_code == 200
