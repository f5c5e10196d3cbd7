"""Hostile uploads, links and run folders: nothing of them is run, unpacked or served."""

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from page_server import SECRET, everything, refused, sample_request
from PIL import Image

pytestmark = pytest.mark.browser
HARMED = Path("/tmp/gralora-page-was-harmed")
ROUTES = (
    "/gradio_api/file=",
    "/file=",
    "/gradio_api/file/",
    "/static/",
    "/gradio_api/proxy=",
    "/assets/",
    "/theme/",
)
CONFIGS = [
    "[" * 100_000,
    "[1]",
    "",
    '{"adapter": {"method": "gralora", "rank": "x"}}',
    '{"no_such": 1}',
    '{"output_dir": {"a": []}}',
]


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
    assert refused(page.call("export", "linked", ["native"], "", "fp16"))
    assert "away" not in json.dumps(page.call("list_runs"))
    shutil.rmtree(run)
    (page.home / "runs" / "away").unlink()


def test_a10_a_report_is_served_in_a_sandbox_and_nothing_else_of_a_run_is(page):
    """Whatever is in report.html: it runs nothing, loads nothing and sends nothing."""
    answer = page.client.get("/report/robot-1/")
    assert answer.status_code == 200
    assert "Sample images" in answer.text
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox; default-src 'none'")
    assert "allow-" not in policy
    image = page.client.get("/report/robot-1/samples/step-00000/00.png")
    assert image.headers["content-type"] == "image/png"
    assert image.headers["x-content-type-options"] == "nosniff"
    assert image.headers["content-security-policy"] == policy
    run = page.home / "runs" / "linked"
    shutil.copytree(page.home / "runs" / "robot-1", run)
    (page.home / "runs" / "away").symlink_to("/etc")
    (run / "report.html").unlink()
    (run / "report.html").symlink_to("/etc/passwd")
    (run / "samples" / "step-00000" / "99.png").symlink_to("/etc/passwd")
    (run / "samples" / "step-00007").symlink_to("/etc")
    places = ["linked/", "away/", "..%2f..%2fetc/", "%2fetc/", "robot-1/config.json", "robot-1/../x/"]
    for place in ("00000/99.png", "00007/passwd", "00000/../../config.json", "00000/..%2f..%2fconfig.json"):
        places.append(f"linked/samples/step-{place}")
    try:
        for place in places:
            answer = page.client.get(f"/report/{place}")
            assert answer.status_code == 404, place
            assert SECRET not in answer.text
    finally:
        shutil.rmtree(run)
        (page.home / "runs" / "away").unlink()


def test_a11_too_large_and_too_many_pixels(page, tmp_path):
    (tmp_path / "large.png").write_bytes(b"\0" * 51_000_000)
    sent = page.client.post(
        "/gradio_api/upload", files=[("files", ("large.png", (tmp_path / "large.png").read_bytes()))]
    )
    assert sent.status_code == 413
    Image.new("1", (20_000, 20_000)).save(tmp_path / "wide.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "good.png")
    answer = page.send(
        page.function_of("drop", "upload"),
        [page.upload(tmp_path / "wide.png", tmp_path / "good.png"), "robot", ""],
    )
    assert "wide.png was left out" in json.dumps(answer)
    assert [p.name for p in page.home.glob("images/*/*.png")] == ["good.png"]
    shutil.rmtree(next(page.home.glob("images/*")))


def test_a12_only_images_become_images(page, tmp_path):
    """HTML and cut files are left out; CMYK, 16 bit, an animation and a rotated photograph are kept."""
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
        page.function_of("drop", "upload"), [page.upload(*(tmp_path / n for n in names)), "robot", ""]
    )
    assert "page.png was left out" in json.dumps(answer)
    assert "cut.png was left out" in json.dumps(answer)
    kept = {p.stem for p in page.home.glob("images/*/*") if p.suffix != ".txt"}
    assert kept == {"good", "cmyk", "deep", "moving", "turned"}
    shutil.rmtree(next(page.home.glob("images/*")))


def test_a13_an_archive_leaves_nothing_but_images(page, tmp_path):
    with zipfile.ZipFile(tmp_path / "slip.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../slipped.png", b"x")
        archive.writestr("bomb.png", bytes(50_000_000))
    before = everything(page.home)
    upload = [page.upload(tmp_path / "slip.zip"), "robot", ""]
    answer = json.dumps(page.send(page.function_of("drop", "upload"), upload))
    assert "slipped.png was left out" in answer
    assert "bomb.png was left out" in answer
    assert everything(page.home) == before
    assert not list(page.home.parent.rglob("slipped.png"))


class Harm:
    def __reduce__(self):
        return Path.touch, (HARMED,)


def test_a14_pickles_are_never_read(page, tmp_path):
    harmful = pickle.dumps(Harm())
    function = page.function_of("add-adapter", "upload")
    for name in ("x.ckpt", "x.pt", "x.bin", "x.pkl", "x.safetensors"):
        (tmp_path / name).write_bytes(harmful)
        assert refused(page.send(function, [page.upload(tmp_path / name)[0], "none", "none", "none", ""])), (
            name
        )
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
    assert refused(page.call("export", "foreign/checkpoint-5", ["native"], "", "fp16"))
    assert refused(page.call("sample", *sample_request("foreign/checkpoint-5", "embedded")))
    shutil.rmtree(foreign)
    assert not HARMED.exists()


@pytest.mark.parametrize("text", CONFIGS, ids=range(len(CONFIGS)))
def test_a17_hostile_config_files_are_refused(page, tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert refused(
        page.send(page.function_of("load-config", "upload"), [page.upload(tmp_path / "config.json")[0]])
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
            page.send(page.function_of("smoothing", "release"), [None, "strange", 0.5, None])
        )
        assert "error" not in page.client.post("/gradio_api/run/status", json=dict(data=[None])).json()
    finally:
        shutil.rmtree(run)
