"""The cache: what it gives back, what it refuses, and what it keeps when several write."""

import os
import signal
import threading

import pytest
import torch

from gralora_diffusion.data.cache import Cache, key_of, weights_hash
from gralora_diffusion.options import ConfigError, TrainingError

KEY = key_of("test", 1, [2, 3], "ä")


def entry(seed=0):
    random = torch.Generator().manual_seed(seed)
    return dict(
        moments=torch.randn(3, 2, 4, 8, 8, generator=random),
        ids=torch.arange(18.0).view(3, 6),
        half=torch.ones(3, 2, dtype=torch.bfloat16),
    )


def test_rows_come_back_as_they_were(tmp_path):
    cache = Cache(tmp_path)
    assert cache.rows("latents", KEY) == 0
    cache.put("latents", KEY, **entry())
    assert cache.rows("latents", KEY) == cache.rows("latents", KEY, check=False) == 3
    for n in range(3):
        row = cache.row("latents", KEY, n)
        assert row.keys() == entry().keys()
        assert all(
            torch.equal(row[name], tensor[n]) and row[name].dtype == tensor.dtype
            for name, tensor in entry().items()
        )
    assert [p.suffix for p in tmp_path.rglob("*") if p.is_file()] == [".safetensors"]
    os.umask(mask := os.umask(0))
    assert cache.path("latents", KEY).stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize(
    "damage", ["flipped bit", "truncated", "empty", "zeros", "another entry", "NaN", "text"]
)
def test_a_damaged_entry_counts_as_absent_and_can_be_written_again(tmp_path, damage):
    cache = Cache(tmp_path)
    cache.put("latents", KEY, **entry())
    path = cache.path("latents", KEY)
    good = path.read_bytes()
    if damage == "another entry":
        cache.put("latents", key_of("other"), **entry(1))
        bad = cache.path("latents", key_of("other")).read_bytes()
    else:
        bad = {
            "flipped bit": good[:-5] + bytes([good[-5] ^ 1]) + good[-4:],
            "truncated": good[:-9],
            "empty": b"",
            "zeros": bytes(len(good)),
            "NaN": good[:-4] + b"\xff\xff\xff\xff",
            "text": b"hello",
        }[damage]
    path.write_bytes(bad)
    assert cache.rows("latents", KEY) == 0
    with pytest.raises(TrainingError, match="run the same command to resume"):
        [cache.row("latents", KEY, n) for n in range(3)]
    cache.put("latents", KEY, **entry())
    assert cache.rows("latents", KEY) == 3


def test_an_entry_that_vanishes_is_named(tmp_path):
    with pytest.raises(TrainingError, match=KEY):
        Cache(tmp_path).row("latents", KEY, 0)


def test_many_writers_of_one_entry_leave_one_good_entry(tmp_path):
    caches, errors = [Cache(tmp_path) for _ in range(4)], []

    def write(cache):
        try:
            for n in range(10):
                cache.put("latents", KEY, **entry())
                cache.put_facts(KEY, dict(n=n))
                assert cache.rows("latents", KEY) == 3
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(cache,)) for cache in caches]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not errors
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == 2


def test_facts_come_back_or_count_as_absent(tmp_path):
    cache = Cache(tmp_path)
    assert cache.facts(KEY) is None
    cache.put_facts(KEY, dict(size=[5, 6], note=None))
    assert cache.facts(KEY) == dict(size=[5, 6], note=None)
    for text in (
        "",
        "{",
        "[]",
        '{"facts": {"size": [9, 9]}, "check": "x"}',
        cache.path("images", KEY).read_text().replace("5", "7"),
    ):
        cache.path("images", KEY).write_text(text)
        assert cache.facts(KEY) is None


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="--latent_cache_dir"):
        Cache(tmp_path / "file").put("latents", KEY, **entry())


def test_no_room_is_said_and_nothing_is_left(tmp_path):
    import resource

    cache, limits = Cache(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (1000, limits[1])
    )  # the kernel refuses larger files, as a full disk would
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(ConfigError, match="free some space"):
            cache.put("latents", KEY, **entry())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_weights_have_one_hash_and_any_change_another():
    def model(seed=0):
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))

    assert weights_hash(model()) == weights_hash(model())
    assert weights_hash(model()) != weights_hash(model(1))
    assert weights_hash(model()) != weights_hash(model().bfloat16())
    changed = model()
    changed[1].weight.data[3, 3] += 1e-7
    assert weights_hash(model()) != weights_hash(changed)
    assert key_of("a", 1) != key_of("a1")
