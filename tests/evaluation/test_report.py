"""What an evaluation writes: one page that needs no network, JSON, and CSV files."""

import csv
import json
from functools import partial
from html.parser import HTMLParser

from gralora_diffusion.evaluation import page
from gralora_diffusion.evaluation.encoders import load_encoder
from gralora_diffusion.evaluation.features import image_features
from gralora_diffusion.evaluation.image_sets import ImageSet, References, images_in
from gralora_diffusion.evaluation.interval_plots import interval_plots
from gralora_diffusion.evaluation.metrics import evaluate
from gralora_diffusion.evaluation.report import score_tables, write_evaluation
from gralora_diffusion.evaluation.score_rows import rows_of
from gralora_diffusion.evaluation.short_names import short_names

TAGS = [
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "h1",
    "h2",
    "table",
    "tr",
    "th",
    "td",
    "p",
    "ul",
    "li",
    "div",
    "figure",
    "figcaption",
    "img",
    "br",
    "pre",
    "header",
    "section",
    "details",
    "summary",
    "span",
    "b",
    "h3",
    "svg",
    "rect",
    "line",
    "circle",
]


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags, self.links, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        assert tag in TAGS
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset")]

    def handle_data(self, data):
        self.text.append(data)


def read_csv(path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_report_holds_everything_and_needs_no_network(photos, tiny_clip, tiny_dinov2, tmp_path):
    hostile = tmp_path / "in" / "<script>x&'\".png"
    hostile.parent.mkdir()
    hostile.write_bytes((photos / "1.png").read_bytes())
    encoders = [load_encoder(f"clip:{tiny_clip}"), load_encoder(f"dinov2:{tiny_dinov2}")]
    paths, prompts = [*images_in(photos)[:3], hostile], ["<b>dog</b>"] * 4
    runs = [ImageSet("base", paths[::-1], prompts), ImageSet("tuned", paths, prompts)]
    against = References(references=paths[:2], originals=paths, base=paths)
    result = evaluate(encoders, runs, against, partial(image_features, cache=tmp_path / "cache"))
    out = tmp_path / "out"
    write_evaluation(out, result, runs, against)

    written = json.loads((out / "scores.json").read_text())
    assert written["scores"] == json.loads(json.dumps(result["scores"]))

    html = (out / "index.html").read_text()
    found = Page(html)
    assert len(found.links) == 2 + 2 * 3 * 4  # the subject; image, true image and the base's of each
    assert all(link.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")) for link in found.links)
    assert "default-src 'none'" in html
    text = "".join(found.text)
    assert text.count(hostile.name) >= 2
    assert text.count("<b>dog</b>") == 8
    values = [*result["scores"], *result["differences"]]
    assert found.tags.count("circle") == len(values)  # a dot with its interval for each
    for encoder in encoders:
        assert encoder.name in score_tables(result)
        assert encoder.name in text
    for short in short_names([encoder.name for encoder in encoders]).values():
        assert text.count(short) > len(values)

    rows = read_csv(out / "scores.csv")
    assert [float(row["mean"]) for row in rows] == [score["mean"] for score in result["scores"]]
    facts = {encoder.name: encoder.facts for encoder in encoders}
    for row in rows:
        made_with = json.loads(row["made_with"])
        assert made_with["weights_sha256"] == facts[row["encoder"]]["weights_sha256"]
        assert {"preprocessing", "torch version", "matched", "interval"} < made_with.keys()
    labels = {"CLIP-I", "CLIP-T", "paired CLIP", "DINO", "paired DINOv2", "drift", "diversity"}
    assert {row["label"] for row in rows} == labels | {"nearest training image", "Vendi score"}
    lines = 2 * (5 + 4) * 4 + 2 * 2 * 2  # diversity and Vendi score are of a prompt
    assert len(read_csv(out / "images.csv")) == len(result["values"]) == lines


def test_one_value_has_no_interval_and_its_row_says_so():
    entry = dict(run="a", label="subject", n=1, mean=0.5, sd=None, low=None, high=None, encoder="X")
    assert rows_of([entry]) == [["a", "subject", "1", "0.5000", "", "n = 1: no interval", "X"]]
    several = entry | dict(n=8, sd=0.1)
    assert rows_of([several]) == [["a", "subject", "8", "0.5000", "0.1000", "one prompt: no interval", "X"]]


def test_a_page_of_many_images_names_how_many_it_shows(photos, tiny_dinov2, monkeypatch):
    monkeypatch.setattr(page, "MOST_IMAGES", 2)
    paths = images_in(photos)
    runs, against = [ImageSet("r", paths)], References(references=paths)
    result = evaluate([load_encoder(f"dinov2:{tiny_dinov2}")], runs, against, image_features)
    found = Page(page.evaluation_page(result, runs, against))
    assert f"r (2 of {len(paths)} images)" in found.text
    assert len(found.links) == 4


def test_each_encoder_has_one_short_name():
    names = {
        "CLIP ViT-L-14-quickgelu openai": "CLIP ViT-L-14",
        "DINOv2 facebook/dinov2-base": "DINOv2 base",
        "CLIP mine (/home/ann/mine)": "CLIP mine",
        "EfficientNet-Lite2 (ImageNet classes)": "ImageNet",
        "something else": "something else",
    }
    assert short_names(list(names)) == names
    alike = ["CLIP ViT-L-14 openai", "CLIP ViT-L-14 laion"]
    assert short_names(alike) == {name: name for name in alike}


def test_an_interval_is_drawn_around_its_mean_and_one_value_has_none():
    one = dict(
        run="a", label="drift", score="drift", n=1, mean=0.5, sd=None, low=None, high=None, encoder="X"
    )
    many = one | dict(run="b", n=9, mean=0.2, low=0.1, high=0.4)
    (plot,) = interval_plots([one, many], {"X": "x"})
    assert (plot["better"], plot["encoder"], plot["low"], plot["high"]) == (
        "lower is better",
        "x",
        "0.1000",
        "0.5000",
    )
    first, second = plot["rows"]
    assert first["low"] == first["mean"] == first["high"] == 94
    assert 6 == second["low"] < second["mean"] < second["high"] < 94
    (plot,) = interval_plots([many | dict(against="a", mean=0.0, low=-0.1)], {"X": "x"}, signed=True)
    assert (plot["title"], plot["rows"][0]["name"]) == ("drift: difference from a", "b")
    assert plot["zero"] == plot["rows"][0]["mean"]
