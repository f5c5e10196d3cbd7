"""Scores against straightforward computations of their own, their statistics, and what is written."""

import csv
import json
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, Dinov2Model

from gralora_diffusion.cli.main import main
from gralora_diffusion.evaluation.encoders import load_encoder
from gralora_diffusion.evaluation.features import image_features, run
from gralora_diffusion.evaluation.image_sets import ImageSet, References, images_in, matched, prompts_for
from gralora_diffusion.evaluation.metrics import evaluate, measure, nearest, similarities
from gralora_diffusion.evaluation.report import table, write_report
from gralora_diffusion.evaluation.retrieval import subject_retrieval
from gralora_diffusion.evaluation.statistics import mean_and_interval
from gralora_diffusion.options import ConfigError

PROMPTS = [
    "a photo of sks dog",
    "a photo of sks dog",
    "a cat at night",
    "a cat at night",
    "a red car",
    "a red car",
]


def features_by_hand(photos, tiny_clip, tiny_dinov2):
    """{encoder kind: (images, texts)}: unit vectors from the libraries' own calls, one image at a time, in numpy."""
    images = [Image.open(p).convert("RGB") for p in images_in(photos)]
    clip, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tiny_clip}")
    tokens = open_clip.get_tokenizer(f"local-dir:{tiny_clip}")
    dino, processor = (
        Dinov2Model.from_pretrained(tiny_dinov2).eval(),
        AutoImageProcessor.from_pretrained(tiny_dinov2, backend="pil"),
    )
    clip.eval()
    with torch.no_grad():
        seen = [clip.encode_image(transform(image)[None])[0] for image in images]
        read = [clip.encode_text(tokens([prompt]))[0] for prompt in PROMPTS]
        cls = [
            dino(**processor(images=image, return_tensors="pt")).last_hidden_state[0, 0] for image in images
        ]
    unit = [
        np.stack([v.double().numpy() / np.linalg.norm(v.double().numpy()) for v in part])
        for part in (seen, read, cls)
    ]
    return {"clip": (unit[0], unit[1]), "dinov2": (unit[2], None)}


@pytest.mark.parametrize("kind", ["clip", "dinov2"])
def test_scores_equal_a_straightforward_computation(kind, photos, tiny_clip, tiny_dinov2):
    images, texts = features_by_hand(photos, tiny_clip, tiny_dinov2)[kind]
    encoder = load_encoder(f"{kind}:{dict(clip=tiny_clip, dinov2=tiny_dinov2)[kind]}")
    paths = images_in(photos)
    against = References(references=paths[1:4], originals=paths[::-1], base=paths[1:] + paths[:1])
    found = {
        score.metric.name: score.values.tolist()
        for score in measure(encoder, ImageSet("r", paths, PROMPTS), against, image_features)
    }
    n = len(paths)
    expected = dict(
        subject=[sum(images[i] @ images[j] for j in (1, 2, 3)) / 3 for i in range(n)],
        paired=[images[i] @ images[n - 1 - i] for i in range(n)],
        drift=[(1 - images[i] @ images[(i + 1) % n]) / 2 for i in range(n)],
        diversity=[1 - images[i] @ images[i + 1] for i in (0, 2, 4)],
        copy=[max(images[i] @ images[j] for j in (1, 2, 3)) for i in range(n)],
    )
    if texts is not None:
        expected["prompt"] = [images[i] @ texts[i] for i in range(n)]
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, abs=1e-6), name


def test_a_image_against_itself_scores_1(photos, tiny_dinov2, tmp_path):
    encoder, path = load_encoder(f"dinov2:{tiny_dinov2}"), images_in(photos)[:1]
    scores = measure(
        encoder, ImageSet("r", path), References(references=path, originals=path, base=path), image_features
    )
    values = {score.metric.name: score.values.item() for score in scores}
    assert values == pytest.approx(dict(subject=1, paired=1, drift=0, copy=1), abs=1e-6)


@pytest.mark.parametrize(
    ("mine", "others", "partners", "how"),
    [
        ("a.png b.png", "b.png a.png", "a.png b.png", "by name"),
        ("00.jpg 00.png", "00.png 00.jpg", "00.jpg 00.png", "by name"),  # one stem, two images
        ("a.png b.png", "b.jpg a.jpg", "a.jpg b.jpg", "by name"),
        ("0.png 1.png", "true-1.png true-0.png", "true-1.png true-0.png", "by order"),
        ("0.png 10.png 1.png", "10.png 00.png 01.png", "00.png 10.png 01.png", "by name"),
    ],
)
def test_partners_are_found_by_name_then_by_order(mine, others, partners, how):
    run = ImageSet("r", [Path("out", name) for name in mine.split()])
    assert matched(run, [Path("true", name) for name in others.split()]) == (
        [Path("true", name) for name in partners.split()],
        how,
    )


@pytest.mark.parametrize(
    ("mine", "others", "words"),
    [
        ("a.png b.png", "a.png c.png", "r and true share some names, as a, but not all"),
        ("00.jpg 00.png", "00.webp 01.png", "share some names, as 0, but not all"),
        ("00.jpg 00.png", "00.webp 00.bmp", "share some names, as 0, but not all, each once"),
        ("a.png b.png c.png", "a.png b.png", "r has 3 images and true has 2"),
    ],
)
def test_partners_that_are_in_doubt_are_refused(mine, others, words):
    with pytest.raises(ConfigError, match=words):
        matched(
            ImageSet("r", [Path("out", name) for name in mine.split()]),
            [Path("true", name) for name in others.split()],
        )


def test_the_result_says_how_partners_were_found(photos, tiny_dinov2, tmp_path):
    paths, others = images_in(photos)[:3], []
    for i, path in enumerate(paths):
        others.append(tmp_path / f"true-{i}.png")
        others[-1].write_bytes(path.read_bytes())
    against = References(originals=others, base=paths[::-1])
    result = evaluate(
        [load_encoder(f"dinov2:{tiny_dinov2}")], [ImageSet("r", paths)], against, image_features
    )
    assert {s["score"]: s["mean"] for s in result["scores"]} == pytest.approx(
        dict(paired=1, drift=0), abs=1e-6
    )
    assert [v["beside"] for v in result["values"]] == [p.name for p in [*others, *paths]]
    assert result["settings"]["matched"] == {"r": dict(paired="by order", drift="by name")}
    assert "r (paired): the names of the images and their partners are not the same" in table(result)


def test_images_without_prompts_have_no_diversity(photos, tiny_dinov2):
    """What they show may be of many prompts."""
    assert (
        measure(
            load_encoder(f"dinov2:{tiny_dinov2}"),
            ImageSet("r", images_in(photos)),
            References(),
            image_features,
        )
        == []
    )


def test_cudnn_is_on_and_deterministic_while_an_encoder_runs(tiny_dinov2):
    seen, cudnn = {}, torch.backends.cudnn

    def side(inputs):
        seen.update(enabled=cudnn.enabled, deterministic=cudnn.deterministic, tf32=cudnn.allow_tf32)
        return inputs

    run(load_encoder(f"dinov2:{tiny_dinov2}"), side, torch.ones(1, 2))
    assert seen == dict(enabled=True, deterministic=True, tf32=False)


def test_copies_are_nearer_than_training_images_to_each_other():
    references = torch.nn.functional.normalize(torch.tensor([[1.0, 0, 0], [0.8, 0.6, 0], [0, 0, 1]]), dim=1)
    values, index, most = nearest(
        torch.nn.functional.normalize(torch.tensor([[0.0, 0.1, 1], [1, 1, 1]]), dim=1), references
    )
    assert most == pytest.approx(0.8)
    assert index == [2, 1]
    assert (values > most).tolist() == [True, True]  # 0.995 and 0.808


def test_paired_differences_are_of_the_same_images(photos, tiny_clip):
    paths, encoder = images_in(photos), load_encoder(f"clip:{tiny_clip}")
    runs = [ImageSet("base", paths, PROMPTS), ImageSet("tuned", paths[::-1], PROMPTS)]
    result = evaluate([encoder], runs, References(references=paths[:2]), image_features)
    drawn = image_features(encoder, paths)
    gap = similarities(drawn.flip(0), drawn[:2]) - similarities(drawn, drawn[:2])
    (found,) = [d for d in result["differences"] if d["score"] == "subject"]
    assert {k: found[k] for k in ("n", "mean", "sd", "low", "high")} == pytest.approx(
        mean_and_interval(gap), abs=1e-6
    )
    assert (found["label"], found["run"], found["against"]) == ("CLIP-I", "tuned", "base")
    fewer = [runs[0], ImageSet("fewer", paths[:4], PROMPTS[:4])]
    with pytest.raises(ConfigError, match="fewer has 4 images and base has 6"):
        evaluate([encoder], fewer, References(references=paths[:2]), image_features)
    assert not evaluate([encoder], fewer, References(references=paths[:2]), image_features, paired=False)[
        "differences"
    ]


def test_words_can_be_left_out_of_prompts_and_it_is_said(photos, tiny_clip):
    encoder, paths = load_encoder(f"clip:{tiny_clip}"), images_in(photos)
    runs = [ImageSet("r", paths, PROMPTS)]
    result = evaluate([encoder], runs, References(drop=("sks",)), image_features)
    plain = evaluate(
        [encoder],
        [ImageSet("r", paths, [p.replace("sks ", "") for p in PROMPTS])],
        References(),
        image_features,
    )
    assert [v["value"] for v in result["values"] if v["score"] == "prompt"] == [
        v["value"] for v in plain["values"] if v["score"] == "prompt"
    ]
    assert "without the words: sks" in table(result)
    assert "rare word included" in table(plain)


def test_images_and_prompts_are_found_in_order(tmp_path):
    for name in ("10.png", "9.png", "base-2.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    assert [p.name for p in images_in(tmp_path)] == ["9.png", "10.png", "base-2.png"]
    assert [p.name for p in images_in(tmp_path / "base-*.png")] == ["base-2.png"]
    assert prompts_for(images_in(tmp_path)) is None
    (tmp_path / "prompts").write_text("\ufeffa dog\n\na cat\nan emu\n", encoding="utf-8")
    paths = images_in(tmp_path)
    assert prompts_for(paths, tmp_path / "prompts") == ["a dog", "a cat", "an emu"]
    assert prompts_for([*paths, *paths], tmp_path / "prompts") == [
        "a dog",
        "a dog",
        "a cat",
        "a cat",
        "an emu",
        "an emu",
    ]
    with pytest.raises(ConfigError, match="3 prompts for the 2 images"):
        prompts_for(paths[:2], tmp_path / "prompts")
    with pytest.raises(ConfigError, match="cannot be read"):
        prompts_for(paths, tmp_path / "gone")
    with pytest.raises(ConfigError, match="holds no images"):
        images_in(tmp_path / "nowhere")


def test_subjects_that_are_apart_are_told_apart():
    features = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [1, 0.2], [0.1, 1], [1, 0.3]]), dim=1)
    found = subject_retrieval(features, ["a", "a", "b", "b"])
    assert found["nearest_is_the_same_subject"] == 0.5  # the first and the third
    assert found["nearest_is_the_same_subject_interval"] == pytest.approx((0.068, 0.932), abs=5e-4)
    assert found["triples_in_order"] == pytest.approx((2 / 2 + 1 / 2 + 2 / 2 + 0 / 2) / 4)
    for subjects in ("aaaa", "abcd"):
        with pytest.raises(ConfigError, match="two at least, and two images of one"):
            subject_retrieval(features, list(subjects))


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.text = [], []

    def handle_starttag(self, tag, attributes):
        assert tag in {
            "meta",
            "title",
            "style",
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
        }
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset")]

    def handle_data(self, data):
        self.text.append(data)


def test_the_report_holds_everything_and_needs_no_network(photos, tiny_clip, tiny_dinov2, tmp_path):
    hostile = tmp_path / "in" / "<script>x&'\".png"
    hostile.parent.mkdir()
    hostile.write_bytes((photos / "1.png").read_bytes())
    encoders = [load_encoder(f"clip:{tiny_clip}"), load_encoder(f"dinov2:{tiny_dinov2}")]
    paths = [*images_in(photos)[:3], hostile]
    runs = [ImageSet("base", paths[::-1], ["<b>dog</b>"] * 4), ImageSet("tuned", paths, ["<b>dog</b>"] * 4)]
    against = References(references=paths[:2], originals=paths, base=paths)
    result = evaluate(encoders, runs, against, partial(image_features, cache=tmp_path / "cache"))
    write_report(tmp_path / "out", result, runs, against)
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["scores"] == json.loads(
        json.dumps(result["scores"])
    )
    page = Page()
    page.feed((tmp_path / "out" / "index.html").read_text())
    assert len(page.links) == 2 + 2 * 3 * 4  # the subject; image, true image and the base's of each
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "default-src 'none'" in (tmp_path / "out" / "index.html").read_text()
    assert page.text.count(hostile.name) >= 2
    for encoder in encoders:
        assert encoder.name in table(result)
        assert any(encoder.name in text for text in page.text)
    with open(tmp_path / "out" / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(r["mean"]) for r in rows] == [s["mean"] for s in result["scores"]]
    facts = {encoder.name: encoder.facts for encoder in encoders}
    for made_with in (json.loads(r["made_with"]) | dict(encoder=r["encoder"]) for r in rows):
        assert made_with["weights_sha256"] == facts[made_with["encoder"]]["weights_sha256"]
        assert {"preprocessing", "torch version", "matched", "interval"} < made_with.keys()
    assert {r["label"] for r in rows} == {
        "CLIP-I",
        "CLIP-T",
        "paired CLIP",
        "DINO",
        "paired DINOv2",
        "drift",
        "diversity",
        "nearest training image",
    }
    with open(tmp_path / "out" / "images.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(result["values"]) == 2 * (6 + 5) * 4 - 2 * 2 * 3


def test_what_is_compared_is_cut_to_the_size_of_what_is_scored(photos, tmp_path, monkeypatch, capsys):
    """As with --run; and an earlier evaluation's differences do not stay beside the new scores."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in (1, 3):
            Image.open(photos / f"{i}.png").resize((40, 32)).save(tmp_path / name / f"{i}.png")
    common = [
        "--reference",
        photos,
        "--encoder",
        "embedded",
        "--cache",
        tmp_path / "cache",
        "--output",
        tmp_path / "out",
    ]
    command("--generated", tmp_path / "a", tmp_path / "b", *common, "--drop", "sks")
    printed = capsys.readouterr()
    assert "were first cut to their size, 40 x 32" in printed.out
    assert "the prompts were not scored" in printed.err
    assert (tmp_path / "out" / "differences.csv").is_file()
    found = json.loads((tmp_path / "out" / "scores.json").read_text())["scores"][0]["mean"]
    encoder = load_encoder("embedded")
    cut = (
        image_features(encoder, images_in(tmp_path / "a"))
        @ image_features(encoder, images_in(photos), (40, 32)).T
    )
    assert found == pytest.approx(cut.mean().item(), abs=1e-6)
    command("--generated", photos, *common)  # images of several sizes
    assert "were first cut" not in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "scores.json",
        "scores.csv",
        "images.csv",
        "index.html",
    }


def command(*arguments):
    main(["evaluate", *map(str, arguments)])


def test_the_command_scores_a_run(finished_run, tmp_path, monkeypatch, capsys):
    command("--run", finished_run, "--cache", tmp_path / "cache", "--output", tmp_path / "out")
    printed = capsys.readouterr().out
    assert "step-00020 - step-00000" in printed
    assert "EfficientNet-Lite2 (ImageNet classes)" in printed
    assert "the embedded base's own image-text encoder" in printed
    result = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert {(s["run"], s["n"]) for s in result["scores"]} == {("step-00000", 4), ("step-00020", 4)}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "scores.json",
        "scores.csv",
        "differences.csv",
        "images.csv",
        "index.html",
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--generated", "PHOTOS", "--reference", "PHOTOS"],
            ["weights of CLIP ViT-L-14-quickgelu, tag openai are not on this machine"],
        ),
        (
            ["--generated", "PHOTOS", "--reference", "PHOTOS", "--encoder", "dinov2-base"],
            ["weights of DINOv2 facebook/dinov2-base are not"],
        ),
        (
            ["--generated", "PHOTOS", "--paired", "PHOTOS/1*.png", "--encoder", "embedded"],
            ["has 6 images", "has 2"],
        ),
        (
            ["--generated", "PHOTOS", "PHOTOS/1*.png", "--encoder", "embedded"],
            ["has 2 images", "has 6", "--unpaired"],
        ),
        (["--generated", "PHOTOS", "--prompts", "gone", "--encoder", "embedded"], ["prompts cannot be read"]),
        (["--generated", "PHOTOS", "--encoder", "embeded"], ["did you mean 'embedded'"]),
        (["--generated", "nowhere"], ["nowhere holds no images"]),
        (["--run", "nowhere"], ["not a run folder"]),
        (["--run", "a", "--subjects", "b"], ["give one of"]),
        (
            ["--run", "a", "--paired", "PHOTOS", "--prompts", "p"],
            ["--paired and --prompts can be given with --generated alone"],
        ),
        (
            ["--generated", "PHOTOS", "PHOTOS/", "--reference", "PHOTOS"],
            ["--generated names one folder twice"],
        ),
        (
            ["--generated", "PHOTOS", "--encoder", "imagenet"],
            ["nothing to score: give --reference, --paired or --base"],
        ),
        (["--generated", "PHOTOS", "--device", "banana"], ["--device banana cannot be used here"]),
        (["--generated", "PHOTOS", "--device", "hpu"], ["--device hpu cannot be used here"]),
        (["--generated", "PHOTOS", "--device", "cuda:99"], ["--device cuda:99 cannot be used here"]),
        (["--subjects", "nowhere"], ["--subjects nowhere must be a folder that holds"]),
        (
            ["--subjects", "PHOTOS"],
            ["must be a folder that holds a folder of images for each of two subjects"],
        ),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(
    arguments, words, photos, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit) as error:
        command(*(a.replace("PHOTOS", str(photos)) for a in arguments), "--cache", tmp_path / "cache")
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert all(word in line for word in words), line
    assert not [p for p in tmp_path.iterdir() if p.name != "cache"]


def test_import_does_not_load_the_evaluators_models():
    code = "import sys, gralora_diffusion, gralora_diffusion.evaluation.encoders; print({'open_clip', 'timm'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
    )
