"""What a browser keeps of the Train form, and what of it is taken back."""

import json

import pytest
from train_form import form_values

from gralora_diffusion.ui.config_form import FIELDS, initial_value, to_config
from gralora_diffusion.ui.form_memory import kept, restored, storage_key
from gralora_diffusion.ui.train_questions import THIS
from gralora_diffusion.ui.workspace import Workspace


def keep(user=None, **values):
    return kept(user, "style", "12gb", "mine-1", form_values(**values))


def test_only_what_was_changed_is_kept_and_never_a_token():
    saved = keep(rank=8, instance_prompt="a photo of sks dog", hub_token="hf_secret")
    assert saved["fields"] == dict(rank=8, instance_prompt="a photo of sks dog")
    assert "hf_secret" not in json.dumps(saved)


def test_the_form_comes_back_as_it_was(workspace):
    values = form_values(rank=8, max_train_steps="20", masked_loss=True, lr_scheduler="cosine")
    found = restored(kept("ann", "style", "12gb", "mine-1", values), "ann", workspace)
    assert found == dict(what="style", card="12gb", name="mine-1", values=values)


@pytest.mark.parametrize(("owner", "user"), [("ann", "bob"), ("ann", None), (None, "ann")])
def test_another_user_of_the_browser_gets_nothing(workspace, owner, user):
    assert restored(keep(owner, rank=8), user, workspace) is None


def test_each_home_has_its_own(tmp_path):
    forms = [(name, form) for name in ("a", "b") for form in ("train", "sample")]
    keys = {storage_key(Workspace(tmp_path / name), form) for name, form in forms}
    assert len(keys) == 4
    assert not any(str(tmp_path) in key for key in keys)


HOSTILE = [
    None,
    7,
    "x",
    [],
    {},
    {"fields": 7},
    {"user": None, "fields": {"rank": {"a": 1}, "seed": "x" * 5000, "output_dir": "/etc", "no": 1}},
    {"user": None, "fields": {"instance_data_dir": "../../etc", "start_from": "../x", "mask_dir": "gone"}},
    {"user": None, "fields": {"method": "<img>", "masked_loss": "yes", "hub_token": "hf_x", "rank": None}},
    {"user": None, "what": {"a": 1}, "card": "x" * 99, "name": ["x"], "fields": {"rank": []}},
]


@pytest.mark.parametrize("saved", HOSTILE)
def test_whatever_a_browser_sends_the_form_can_be_filled(workspace, saved):
    found = restored(saved, None, workspace)
    if found is None:
        return
    untouched = {name: initial_value(option) for name, option in FIELDS.items()}
    assert found == dict(what="subject", card=THIS, name="", values=untouched)
    to_config(found["values"], workspace)
