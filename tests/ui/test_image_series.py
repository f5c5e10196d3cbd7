"""Series of images: prompts, seeds, strengths, previews, and what is cancelled in the middle."""

import threading

import numpy as np
import pytest

from gralora_diffusion import devices
from gralora_diffusion.options import ConfigError
from gralora_diffusion.sdxl.latent_preview import SIDE, small_image
from gralora_diffusion.ui.image_series import Generated, prompts_of, requests_of, series
from gralora_diffusion.ui.sample_fields import NAMES, all_requests, values_of
from gralora_diffusion.ui.sampler import ImageRequest, Sampler, refuse_different
from gralora_diffusion.ui.watched import Cancelled, Done, watched
from gralora_diffusion.ui.workspace import BEST

PLAIN = ImageRequest("a robot", 3, (), 4, None)
VALUES = dict.fromkeys(NAMES) | dict(
    strength=1,
    prompt="a robot",
    count=1,
    seed=0,
    second="none",
    second_strength=0.5,
    steps=2,
    guidance="",
    third="none",
    third_strength=0.5,
    fourth="none",
    fourth_strength=0.5,
    random_seed=False,
    preview_every=0,
)


@pytest.fixture
def sampler(workspace, monkeypatch):
    monkeypatch.setattr(devices, "best_device", lambda: devices.torch.device("cpu"))
    return Sampler(workspace)


def test_previews_come_after_so_many_steps_and_near_the_image(sampler):
    """Of Euler steps the noise is removed, so that the last preview is the image but for its last step."""
    request = ImageRequest("a robot", 3, (), 12, None)
    *steps, last = list(series(sampler, [request], None, False, 5))
    assert [step.number for step in steps] == list(range(1, 13))
    assert [step.number for step in steps if step.preview is not None] == [5, 10]
    image = np.asarray(last.image, float)
    errors = [np.abs(np.asarray(step.preview, float) - image).mean() for step in steps if step.preview]
    assert errors[1] < errors[0] < 60  # of 255; without the estimate the first one is noise
    assert errors[1] < 25
    plain = Sampler(sampler.workspace).generate(request, None)
    assert np.array_equal(np.asarray(plain), np.asarray(last.image))


def test_large_latents_are_averaged_for_a_preview(sampler):
    sampler.load_base(None)
    vae = sampler.pipeline.vae
    latents = devices.torch.zeros(vae.config.latent_channels, 4 * SIDE, 2 * SIDE)
    shapes = []
    real = vae.decode
    vae.decode = lambda x: shapes.append(tuple(x.shape[2:])) or real(x)
    assert small_image(vae, latents, (40, 80)).size == (40, 80)
    assert shapes == [(SIDE, SIDE // 2)]
    assert small_image(vae, latents * float("nan"), (40, 80)) is None


def test_an_image_that_nobody_waits_for_any_more_ends_at_its_next_step(sampler):
    events = series(sampler, [PLAIN], None, False, 0)
    assert next(events).number == 1
    threads = [thread for thread in threading.enumerate() if thread.daemon]
    events.close()
    for thread in threads:
        thread.join(60)
    assert sampler.lock.acquire(timeout=60)
    sampler.lock.release()
    assert isinstance(list(series(sampler, [PLAIN], None, False, 0))[-1], Generated)


def test_work_is_followed_ends_with_done_and_its_errors_are_raised():
    assert list(watched(lambda report: [report(n) for n in (1, 2)])) == [1, 2, Done([None, None])]

    def fail(report):
        raise ConfigError("no memory")

    with pytest.raises(ConfigError, match="no memory"):
        list(watched(fail))
    ended = threading.Event()
    read = threading.Event()

    def work(report):
        try:
            report(1)
            read.wait(60)
            report(2)
        except Cancelled:
            ended.set()
            raise

    followed = watched(work)
    assert next(followed) == 1
    followed.close()
    read.set()
    assert ended.wait(60)


def test_each_prompt_has_each_seed_at_each_strength(sampler):
    first = ImageRequest("x", 7, (("one", 1.0), ("two", 0.3)), 2, None)
    found = requests_of(first, ["a", "b"], 2, [0.5, 1.0])
    assert [(r.prompt, r.seed, r.adapters[0][1]) for r in found[:3]] == [
        ("a", 7, 0.5),
        ("a", 7, 1.0),
        ("a", 8, 0.5),
    ]
    assert len(found) == 8
    assert all(request.adapters[1] == ("two", 0.3) for request in found)
    assert prompts_of(" a \n\n b\n") == ["a", "b"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(prompt=" \n "), "the prompt is empty"),
        (dict(prompt="a\n" * 17), "there are 17 prompts, one per line; the limit is 16"),
        (dict(prompt="a\n" + "b" * 1001), "the prompt has 1001 characters"),
        (dict(prompt="a\n" * 16, count=8), "these are 128 images; the limit is 64"),
        (dict(count=0), "the number of images is '0'; it must be from 1 to 8"),
        (dict(sweep="0.5, 1"), "the strength sweep needs an adapter"),
        (dict(sweep="0.5, 9", adapter="x"), "no adapter named 'x'"),
        (dict(third="../../etc/passwd"), "no adapter named"),
        (dict(seed=-1), "the seed is '-1'"),
        (dict(steps=101), "the denoising steps are '101'"),
    ],
)
def test_what_a_browser_sends_for_a_series_is_checked(workspace, changes, words):
    with pytest.raises(ConfigError, match=words):
        all_requests(workspace, VALUES | changes)


@pytest.mark.parametrize("every", [-1, 21])
def test_previews_are_bounded(sampler, every):
    with pytest.raises(ConfigError, match="the steps between previews are"):
        next(series(sampler, [PLAIN], None, False, every))


def test_a_random_seed_is_another_each_time(workspace):
    values = VALUES | dict(random_seed=True, seed=5, count=2)
    seeds = [[request.seed for request in all_requests(workspace, values)] for _ in range(4)]
    assert all(second == first + 1 for first, second in seeds)
    assert len({first for first, _ in seeds}) == 4
    assert all(0 <= first < 2**32 for first, _ in seeds)


def test_the_fields_of_an_image_give_the_same_request(workspace, monkeypatch):
    monkeypatch.setattr(type(workspace), "adapter_names", lambda self: ["one", "two", "three"])
    adapters = (("one", 0.7), ("two", 0.3), ("three", 1.2))
    request = ImageRequest("a robot", 3, adapters, 4, 2.5, "red", "96x64", "dpm++_2m")
    values = VALUES | values_of(request, "embedded")
    assert all_requests(workspace, values) == [request]
    assert values["base"] == "embedded"
    assert all_requests(workspace, VALUES | values_of(PLAIN, "")) == [PLAIN]


def test_adapters_that_differ_are_named():
    flows = {"slow": "flow with shift 3", "slower": "flow with shift 3", "fast": "flow with shift 1"}
    words = (
        "slow and fast cannot be used together: slow was trained for flow with shift 3, "
        r"fast for flow with shift 1\. Use one of them\."
    )
    with pytest.raises(ConfigError, match=words):
        refuse_different(flows)
    refuse_different(dict(slow="flow with shift 3", slower="flow with shift 3"))


def test_the_best_checkpoint_is_offered_marked_and_never_chosen_by_itself(workspace):
    run = workspace.runs / "dog"
    for folder in (run, run / BEST, run / "checkpoint-20"):
        folder.mkdir()
        (folder / "adapter.safetensors").touch()
    (run / "config.json").write_text("{}")
    names = ["dog", f"dog/{BEST}", "dog/checkpoint-20"]
    assert workspace.adapter_names() == names
    assert workspace.adapter(f"dog/{BEST}") == run / BEST / "adapter.safetensors"
    assert workspace.suggested_adapter() == "dog"
    offered = [("dog (best step)", "dog"), ("dog, checkpoint of step 20", "dog/checkpoint-20")]
    assert workspace.adapter_choices() == offered  # which the run has exported
    (run / "adapter.safetensors").unlink()
    assert workspace.suggested_adapter() is None
    assert workspace.adapter_choices() == [("dog, best step", f"dog/{BEST}"), offered[1]]
    (run / BEST / "adapter.safetensors").unlink()
    (run / BEST / "adapter.safetensors").symlink_to("/etc/passwd")
    assert workspace.adapter_names() == ["dog/checkpoint-20"]
