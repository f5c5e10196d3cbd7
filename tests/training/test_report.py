"""report.html: complete without network, and nothing that a user wrote can become markup in it."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from PIL import Image

from gralora_diffusion import TrainConfig
from gralora_diffusion.files import render
from gralora_diffusion.options import to_dict
from gralora_diffusion.training.report import write_report
from gralora_diffusion.training.report_charts import HEIGHT, LEFT, RIGHT, WIDTH, loss_chart
from gralora_diffusion.training.report_samples import MOST_ROWS, MOST_STEPS

HOSTILE = """</code></title></style><script>alert(1)</script><img src=x onerror="alert(2)">{{ 7 * 7 }}'"&"""


class Page(HTMLParser):
    """The tags, attributes and text of a page as a browser reads them."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


def make_run(folder: Path, **options) -> Path:
    """A run folder that holds what write_report() reads."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(to_dict(TrainConfig(**options))))
    lines = [dict(step=step, loss=1 / step, seconds=0.5) for step in range(1, 41)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def read(run: Path, training_images=()) -> Page:
    write_report(run, training_images)
    return Page((run / "report.html").read_text())


def test_hostile_names_prompts_and_files_are_escaped(tmp_path):
    options = dict.fromkeys(("instance_prompt", "validation_prompt", "dataset_name"), HOSTILE)
    run = make_run(tmp_path / "<img src=x onerror=alert(3)>", **options, hub_model_id=HOSTILE)
    (run / '<b onclick="alert(4)">.txt').write_text("")
    samples = run / "samples" / "step-00000"
    samples.mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(samples / 'x"onerror="alert(5).png')
    page = read(run)
    assert "script" not in page.tags
    assert page.tags.count("b") == 1  # the step of the image
    assert page.tags.count("img") == 1
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert run.name in page.text
    assert HOSTILE in page.text
    assert dict(page.attributes)["href"].startswith("samples/step-00000/x%22onerror%3D%22alert")
    assert dict(page.attributes)["alt"] == f"base model: {HOSTILE}"


def test_a_page_may_load_nothing_and_holds_its_images(tmp_path):
    run = make_run(tmp_path / "run")
    folder = run / "samples" / "step-00040"
    folder.mkdir(parents=True)
    Image.new("RGB", (800, 600)).save(folder / "00.png")
    page = read(run)
    attributes = dict(page.attributes)
    assert attributes["content"]  # of <meta>
    assert any("default-src 'none'" in str(value) for _, value in page.attributes)
    assert attributes["src"].startswith("data:image/jpeg;base64,")
    assert attributes["href"] == "samples/step-00040/00.png"
    assert "://" not in (run / "report.html").read_text()


def test_a_run_without_steps_has_a_report(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    page = read(run)
    assert "no steps" in page.text
    assert "polyline" not in page.tags


def test_the_curve_stays_inside_its_frame_and_falls_with_the_loss():
    metrics = [dict(step=step, loss=1 / step) for step in range(1, 5001)]
    each_step, smoothed = loss_chart(metrics)["lines"]
    points = [tuple(map(float, p.split(","))) for p in each_step["points"].split()]
    assert 1000 <= len(points) <= 2000
    assert all(LEFT <= x <= WIDTH - RIGHT and 0 <= y <= HEIGHT for x, y in points)
    assert points == sorted(points)
    assert re.fullmatch(r"[\d., ]+", smoothed["points"])


def test_a_template_that_lacks_a_value_is_an_error():
    with pytest.raises(UndefinedError):
        render("templates/base.html")


def evaluated_run(folder: Path, **options) -> Path:
    run = make_run(folder, validation_steps=10, **options)
    losses, scores = (0.4, 0.2, 0.3), (0.0, 0.1, 0.2)
    lines = []
    for number, (loss, score) in enumerate(zip(losses, scores, strict=True)):
        lines.append(dict(step=10 * number, validation_loss=loss, subject=0.5, prompt=0.6, score=score))
    (run / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


@pytest.mark.parametrize(("by", "best"), [("loss", 10), ("score", 20)])
def test_the_evaluations_are_drawn_with_the_best_step_marked(tmp_path, by, best):
    options = dict(validation_split=0.1) if by == "loss" else {}
    page = read(evaluated_run(tmp_path / "run", keep_best=by, **options))
    text = " ".join(page.text)
    assert "Loss on held-out images" in text
    assert "Scores of the sample images" in text
    assert text.count(f"best: {best}") == 2
    assert page.tags.count("polyline") == 2 + 1 + 3  # each step and smoothed; loss; subject, prompt, score
    (at,) = {
        value
        for tag, value in page.attributes
        if tag == "x1" and value == f"{LEFT + (WIDTH - LEFT - RIGHT) * best / 20:.1f}"
    }
    assert at


def test_a_run_without_evaluations_has_no_chart_of_them(tmp_path):
    text = " ".join(read(make_run(tmp_path / "run")).text)
    assert "held-out" not in text


def test_evaluations_without_numbers_are_left_out(tmp_path):
    run = make_run(tmp_path / "run")
    lines = [dict(step=0, validation_loss=None), dict(step=1, validation_loss=0.5), dict(step=2, subject="x")]
    (run / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = read(run)
    assert page.tags.count("polyline") == 3


def add_samples(run: Path, steps, count: int) -> None:
    for step in steps:
        folder = run / "samples" / f"step-{step:05d}"
        folder.mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (16, 16)).save(folder / f"{number:02d}.png")


def test_each_sample_has_its_prompt_and_the_training_images_are_there(tmp_path):
    run = evaluated_run(tmp_path / "run", keep_best="score", validation_prompt="a dog|a cat")
    add_samples(run, (0, 10, 20), 2)
    page = read(run, [Image.new("RGB", (900, 600))] * 3)
    captions = [value for name, value in page.attributes if name == "alt"]
    steps = ("base model", "step 10", "step 20")
    expected = [f"{step}: {prompt}" for prompt in ("a dog", "a cat") for step in steps]
    assert captions == [*expected, *(f"training image {number}" for number in (1, 2, 3))]
    assert page.text.count("best") == 2  # the badge of both images of step 20


def test_step_0_of_a_started_run_is_that_of_its_adapter(tmp_path):
    """Neither the report nor before_after.png calls it the base; the folders of the machine are not named."""
    start = tmp_path / "house" / "my_style.safetensors"
    run = evaluated_run(tmp_path / "run", validation_prompt="a dog", start_from=str(start))
    add_samples(run, (0, 10), 1)
    page = read(run)
    captions = [value for name, value in page.attributes if name == "alt"]
    assert captions == ["start: my_style: a dog", "step 10: a dog"]
    assert "house" not in "".join(page.text)


def test_a_long_run_shows_some_steps_and_says_so(tmp_path):
    run = make_run(tmp_path / "run")
    add_samples(run, range(0, 200, 10), MOST_ROWS + 1)
    page = read(run)
    assert page.tags.count("img") == MOST_STEPS * MOST_ROWS
    text = " ".join(page.text)
    assert (
        f"{MOST_STEPS} of 20 steps and {MOST_ROWS} of {MOST_ROWS + 1} images of each step are shown" in text
    )
    assert {"base model", "step 190"} < set(page.text)


def test_options_that_differ_from_the_defaults_come_first_and_the_others_are_folded(tmp_path):
    page = read(make_run(tmp_path / "run", max_train_steps=7, snr_gamma=5.0, instance_prompt="a dog"))
    text = "\n".join(page.text)
    first, folded = text.split("All other options")
    first = first.split("Options that differ from the defaults")[1]
    assert all(value in first for value in ("7", "5.0", "a dog"))
    assert "Learning rate" not in first
    assert "Learning rate" in folded
    assert "details" in page.tags


@pytest.mark.parametrize(
    "options",
    [
        dict(prediction_type="v_prediction"),
        dict(train_text_encoder=True, text_encoder_lr=1e-6),
        dict(mixed_precision="bf16"),
    ],
)
def test_an_option_that_was_given_is_not_folded(tmp_path, options):
    page = read(make_run(tmp_path / "run", **options))
    first = "\n".join(page.text).split("All other options")[0]
    for value in options.values():
        assert json.dumps(value).strip('"') in first


def test_what_a_run_records_by_itself_is_folded(tmp_path):
    page = read(make_run(tmp_path / "run", max_train_steps=7, resolution=64))
    first, folded = "\n".join(page.text).split("All other options")
    for label in ("Prediction type", "Mixed precision", "Resolution (pixels)"):
        assert label not in first
        assert label in folded
