"""Files of other tools are read as they mean them; damaged or foreign ones are refused in one sentence."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from adapter_files import CONFIGS, close, deltas, weight_ids
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from helpers import MODELS, adapted_pipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from gralora_diffusion import AdapterConfig, load_adapter, load_sdxl
from gralora_diffusion.adapters.control import remove
from gralora_diffusion.adapters.registry import adapted_layers
from gralora_diffusion.formats.adapter_state import Adapter, describe
from gralora_diffusion.formats.layer_names import from_kohya, kohya
from gralora_diffusion.formats.load import check_fits_base
from gralora_diffusion.formats.merge_base import write_merged
from gralora_diffusion.formats.read import read_adapter
from gralora_diffusion.formats.write import write_comfyui, write_diffusers, write_native
from gralora_diffusion.formats.write_peft import write_peft
from gralora_diffusion.options import ConfigError

WIDTH = r"do not fit the base's layer \d+ -> \d+; the adapter was made for a different base"


def test_both_conventions_of_hybrid_rank(tmp_path):
    """PEFT: r 8 and hybrid_r 8. The paper: r 16, of which hybrid_r 8. Same tensors and scale, alpha/16."""
    adapter = Adapter.from_models(
        adapted_pipeline(AdapterConfig(rank=16, k=4, hybrid_rank=8, alpha=24.0), ["unet"])[1]
    )
    write_peft(tmp_path / "x", adapter)
    file = tmp_path / "x" / "unet" / "adapter_config.json"
    config = json.loads(file.read_text())
    assert (config["r"], config["hybrid_r"], config["alpha"]) == (8, 8, 24.0)
    for r in (8, 16):
        file.write_text(json.dumps(config | dict(r=r)))
        again = read_adapter(tmp_path / "x")
        assert (again.config.rank, again.config.hybrid_rank, again.config.k, again.config.alpha) == (
            16,
            8,
            4,
            24.0,
        )
        close(deltas(again), deltas(adapter), 0)
    file.write_text(json.dumps(config | dict(r=12)))
    with pytest.raises(ConfigError, match=r"says r 12.* and the tensors have 8"):
        read_adapter(tmp_path / "x" / "unet")


def test_a_peft_folder_made_by_peft(tmp_path):
    from peft import GraloraConfig, LoraConfig, get_peft_model

    for config in (
        GraloraConfig(
            r=8, hybrid_r=4, gralora_k=2, alpha=18, target_modules=["to_q", "to_v"], init_weights=False
        ),
        LoraConfig(
            r=4,
            lora_alpha=6,
            target_modules=["to_q", "to_v"],
            rank_pattern={"attn2.to_v": 8},
            use_rslora=True,
            init_lora_weights=False,
        ),
    ):
        model = get_peft_model(load_sdxl().unet, config)
        model.save_pretrained(tmp_path / config.peft_type)
        merged, base = model.merge_and_unload(), load_sdxl()
        load_adapter(base, tmp_path / config.peft_type)
        for path, layer in adapted_layers(base.unet).items():
            change = merged.get_submodule(path).weight - layer.weight
            torch.testing.assert_close(layer.delta(), change, rtol=0, atol=2e-6)


def test_the_header_of_diffusers_is_honoured(tmp_path):
    """A file as diffusers' own trainers write it: alpha is not the rank, and stands in the header alone."""
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    unet = load_sdxl().unet
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["to_q", "to_v"],
        rank_pattern={"attn2.to_v": 8},
        init_lora_weights=False,
    )
    unet.add_adapter(config)
    StableDiffusionXLPipeline.save_lora_weights(
        tmp_path, get_peft_model_state_dict(unet), **_collate_lora_metadata({"unet": unet})
    )
    with safe_open(tmp_path / "pytorch_lora_weights.safetensors", "pt") as file:
        assert '"unet.lora_alpha": 6' in file.metadata()["lora_adapter_metadata"]
    unet.fuse_lora()
    ours = load_sdxl()
    load_adapter(ours, tmp_path)
    assert len(adapted_layers(ours.unet)) == 28
    for path, layer in adapted_layers(ours.unet).items():
        change = unet.get_submodule(path).base_layer.weight - layer.weight
        torch.testing.assert_close(layer.delta(), change, rtol=0, atol=2e-6)


def test_old_names_of_diffusers(tmp_path):
    down, up = torch.randn(4, 192), torch.randn(128, 4)
    name = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    save_file(
        {f"{name}.lora.down.weight": down, f"{name}.lora.up.weight": up, f"{name}.alpha": torch.tensor(2.0)},
        tmp_path / "x.safetensors",
    )
    close(deltas(read_adapter(tmp_path / "x.safetensors")), {name: (up.double() @ down.double()) / 2}, 1e-6)


def bad_files(folder, adapter) -> dict[str, tuple]:
    """{what is wrong: (path, words of the sentence)}"""
    write_native(native := folder / "native.safetensors", adapter)
    write_comfyui(exported := folder / "exported.safetensors", adapter)
    write_diffusers(diffusers := folder / "diffusers.safetensors", adapter)
    write_peft(folder / "peft", adapter)
    config = json.loads((folder / "peft" / "unet" / "adapter_config.json").read_text())
    found = {}

    def bad(what, words, source, change=None, metadata=None):
        tensors, said = load_file(source), safe_open(source, "pt").metadata()
        first = next(name for name in sorted(tensors) if "alpha" not in name)
        tensors = change(tensors, first) if change else tensors
        save_file(
            {name: tensor.clone() for name, tensor in tensors.items()},
            folder / f"{what}.safetensors",
            said | (metadata(said) if metadata else {}),
        )
        found[what] = folder / f"{what}.safetensors", words

    def bad_peft(what, words, change):
        shutil.copytree(folder / "peft" / "unet", folder / what)
        (folder / what / "adapter_config.json").write_text(
            change if isinstance(change, str) else json.dumps(config | change)
        )
        found[what] = folder / what, words

    for source in (native, exported, diffusers):
        kind = source.stem
        bad(
            f"{kind}, half a pair",
            "need",
            source,
            lambda t, first: {n: v for n, v in t.items() if n != first},
        )
        bad(
            f"{kind}, not finite", "not finite", source, lambda t, first: t | {first: t[first] * float("nan")}
        )
        bad(
            f"{kind}, wrong shape",
            "fit",
            source,
            lambda t, first: t | {first: t[first][:1].repeat(3, *[1] * (t[first].ndim - 1))},
        )
        bad(f"{kind}, dimensions", "dimensions", source, lambda t, first: t | {first: t[first].flatten()})
        bad(
            f"{kind}, whole numbers",
            "adapters are fp8",
            source,
            lambda t, first: t | {first: t[first].int()},
        )
        bad(
            f"{kind}, unknown layer",
            "SDXL has no such layer",
            source,
            lambda t, _: {n.replace("to_q", "to_k2"): v for n, v in t.items()},
        )
    bad("exported, a surprise", "unknown tensor", exported, lambda t, _: t | {"surprise": torch.zeros(1)})
    bad(
        "exported, LoCon",
        "LoCon",
        exported,
        lambda t, first: t | {first.split(".")[0] + ".lora_mid.weight": torch.zeros(1)},
    )
    bad(
        "exported, DoRA",
        "DoRA",
        exported,
        lambda t, first: t | {first.split(".")[0] + ".dora_scale": torch.zeros(1)},
    )
    bad(
        "exported, no alpha",
        "alpha",
        exported,
        lambda t, first: t | {first.split(".")[0] + ".alpha": torch.tensor(float("nan"))},
    )
    bad(
        "exported, odd block count",
        "layers_per_block",
        exported,
        metadata=lambda _: {"gralora.layers_per_block": "many"},
    )
    bad("exported, facts", "gralora.facts", exported, metadata=lambda _: {"gralora.facts": "["})
    bad(
        "SD 1.5, text encoder",
        "Stable Diffusion 1 or 2",
        exported,
        lambda t, _: {n.replace("lora_te1", "lora_te"): v for n, v in t.items() if "lora_te1" in n},
    )
    old = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    pair = {f"{old}.lora_down.weight": torch.ones(4, 320), f"{old}.lora_up.weight": torch.ones(320, 4)}
    bad("SD 1.5, UNet", "Stable Diffusion 1 or 2", exported, lambda t, _: pair)
    bad(
        "both styles",
        "two styles",
        exported,
        lambda t, _: (
            t | {kohya(*from_kohya(n.split(".")[0], 1)) + "." + n.split(".", 1)[1]: v for n, v in t.items()}
        ),
    )
    bad(
        "diffusers, lie",
        "the header says rank 99",
        diffusers,
        metadata=lambda _: {"lora_adapter_metadata": '{"unet.r": 99, "unet.lora_alpha": 4}'},
    )
    bad(
        "diffusers, alpha",
        "its alpha is 'x'",
        diffusers,
        metadata=lambda _: {"lora_adapter_metadata": '{"unet.r": 28, "unet.lora_alpha": "x"}'},
    )
    bad(
        "diffusers, header",
        "cannot be read",
        diffusers,
        metadata=lambda _: {"lora_adapter_metadata": "no JSON"},
    )
    bad_peft("PEFT, lie", "says r 64", dict(r=64))
    bad_peft("PEFT, alpha", "says alpha None", dict(alpha=None))
    bad_peft("PEFT, kind", "OFT of PEFT needs oft_R", dict(peft_type="OFT"))
    bad_peft("PEFT, config", "not a JSON object", "[]")
    bad_peft("PEFT, pickle", "pickle", {})
    (folder / "PEFT, pickle" / "adapter_model.safetensors").rename(
        folder / "PEFT, pickle" / "adapter_model.bin"
    )
    for name, content in (
        ("pickle", b"\x80\x04\x95."),
        ("empty", b""),
        ("liar", (2**62).to_bytes(8, "little") + b"{}"),
        ("text", b"hello world"),
    ):
        (folder / f"{name}.safetensors").write_bytes(content)
        words = "is a pickle" if name == "pickle" else "not a complete .safetensors file"
        found[name] = folder / f"{name}.safetensors", words
    (folder / "cut.safetensors").write_bytes(exported.read_bytes()[:-100])
    found["cut"] = folder / "cut.safetensors", "not a complete .safetensors file"
    (folder / "nothing").mkdir()
    found["empty folder"] = folder / "nothing", "does not exist"
    return found


def test_what_is_wrong_is_one_sentence_and_nothing_is_applied(tmp_path):
    adapter = Adapter.from_models(
        adapted_pipeline(
            AdapterConfig(rank=16, k=2, hybrid_rank=4, targets=r"attn1\.to_[qv]$|self_attn\.[qv]")
        )[1]
    )
    pipeline = load_sdxl()
    for what, (path, words) in bad_files(tmp_path, adapter).items():
        with pytest.raises(ConfigError) as caught:
            load_adapter(pipeline, path)
        assert words in str(caught.value), (what, str(caught.value))
        assert "\n" not in str(caught.value)
        assert not any(adapted_layers(getattr(pipeline, c)) for c in MODELS), what


def test_headers_that_lie_about_the_native_file(tmp_path):
    adapter = Adapter.from_models(adapted_pipeline(AdapterConfig(rank=16, k=2, alpha=8.0), ["unet"])[1])
    write_native(tmp_path / "x.safetensors", adapter)
    tensors = load_file(tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["gralora_diffusion"])
    lies = dict(
        rank=dict(rank=64),
        k=dict(k=4),
        hybrid_rank=dict(hybrid_rank=8),
        alpha=dict(alpha=16.0),
        method=dict(method="lora", k=None),
    )
    words = dict(
        rank="says rank 64",
        k="k 4",
        hybrid_rank="hybrid_rank 8",
        alpha="alpha is not the one of the header",
        method="lora layers need",
    )
    for name, lie in lies.items():
        save_file(
            tensors,
            tmp_path / "lie.safetensors",
            {"gralora_diffusion": json.dumps(facts | dict(config=facts["config"] | lie))},
        )
        with pytest.raises(ConfigError, match=words[name]):
            read_adapter(tmp_path / "lie.safetensors")


@pytest.mark.parametrize("lie", [dict(base=[]), dict(prompts=["a"]), dict(prompts={"instance_prompt": 3})])
def test_facts_of_another_type_are_refused(tmp_path, lie):
    adapter = Adapter.from_models(adapted_pipeline(AdapterConfig(rank=16, k=2), ["unet"])[1])
    write_native(tmp_path / "x.safetensors", adapter)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["gralora_diffusion"])
    header = {"gralora_diffusion": json.dumps(facts | lie)}
    save_file(load_file(tmp_path / "x.safetensors"), tmp_path / "lie.safetensors", header)
    with pytest.raises(ConfigError, match=r"base, prompts, .* is wrong; the file is damaged"):
        read_adapter(tmp_path / "lie.safetensors")


@pytest.fixture(scope="module")
def foreign_bases(tmp_path_factory):
    """{kind: (pipeline, its folder)}: a Stable Diffusion 1.5 in small, and an SDXL of another width."""
    folder = tmp_path_factory.mktemp("bases")
    torch.manual_seed(0)
    text = dict(hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    sides = dict(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=48,
        attention_head_dim=8,
        sample_size=8,
        **sides,
    )
    small = load_sdxl()
    sd15 = StableDiffusionPipeline(
        vae=small.vae,
        unet=unet,
        text_encoder=CLIPTextModel(CLIPTextConfig(**text)),
        tokenizer=small.tokenizer,
        scheduler=small.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    config = dict(small.unet.config)
    wide = load_sdxl(
        unet=UNet2DConditionModel.from_config(
            config | dict(block_out_channels=[2 * n for n in config["block_out_channels"]])
        )
    )
    found = {"SD 1.5": sd15, "another width": wide}
    for name, pipeline in found.items():
        pipeline.save_pretrained(folder / name)
    return {name: (pipeline, folder / name) for name, pipeline in found.items()}


WRONG_BASES = [
    (
        "SD 1.5",
        "unet",
        r"the base has no such layer; the adapter was made for a different kind of model",
        r"SD 1\.5 is not an SDXL base",
    ),
    ("SD 1.5", "all", r"do not fit the base's layer 48 -> 48", r"SD 1\.5 is not an SDXL base"),
    ("another width", "unet", WIDTH, WIDTH),
    ("another width", "all", WIDTH, WIDTH),
]


@pytest.mark.parametrize(("base", "models", "loading", "converting"), WRONG_BASES)
def test_a_wrong_base_is_one_sentence_and_stays_as_it_was(
    base, models, loading, converting, foreign_bases, tmp_path
):
    pipeline, folder = foreign_bases[base]
    adapter = Adapter.from_models(
        adapted_pipeline(CONFIGS["mixed"], MODELS if models == "all" else ["unet"])[1]
    )
    write_native(tmp_path / "adapter.safetensors", adapter)
    models = {c: m for c, m in pipeline.components.items() if isinstance(m, torch.nn.Module)}
    weights = {c: weight_ids(m) for c, m in models.items()}
    with pytest.raises(ConfigError, match=loading) as caught:
        load_adapter(pipeline, tmp_path / "adapter.safetensors")
    assert "\n" not in str(caught.value)
    assert weights == {c: weight_ids(getattr(pipeline, c)) for c in weights}
    for attempt in (
        lambda: check_fits_base(adapter, str(folder), "x"),
        lambda: write_merged(tmp_path / "merged", adapter, str(folder), torch.float16),
        lambda: write_merged(tmp_path / "merged.safetensors", adapter, str(folder), torch.float16),
    ):
        with pytest.raises(ConfigError, match=converting) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter.safetensors"]


def test_the_embedded_bases_adapter_does_not_fit_sdxl(tmp_path):
    """By SDXL's own shapes, without any weights; a checkpoint without its weights is refused too."""
    adapter = Adapter.from_models(
        adapted_pipeline(AdapterConfig(rank=16, k=2, targets="down_blocks.1.*attn1"), ["unet"])[1]
    )
    save_file({"model.diffusion_model.out.2.bias": torch.zeros(4)}, tmp_path / "sdxl.safetensors")
    with pytest.raises(ConfigError, match=WIDTH):
        check_fits_base(adapter, str(tmp_path / "sdxl.safetensors"), "x")
    check_fits_base(adapter, None, "x")
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    fits = {"unet": {name: dict(lora_A=torch.ones(4, 640), lora_B=torch.ones(640, 4))}}
    with pytest.raises(
        ConfigError,
        match=r"'model.diffusion_model.input_blocks.0.0.weight' is missing: it is not a complete SDXL base",
    ):
        write_merged(
            tmp_path / "x.safetensors",
            Adapter(describe(fits), fits),
            str(tmp_path / "sdxl.safetensors"),
            torch.float16,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["sdxl.safetensors"]


def headers_that_lie(good: bytes) -> dict[str, bytes]:
    """{what is wrong: a .safetensors file}, made from one that is right."""
    size = int.from_bytes(good[:8], "little")
    text, data = good[8 : 8 + size], good[8 + size :]
    header = json.loads(text)
    first, second = [name for name in header if name != "__metadata__"][:2]

    def file(changed) -> bytes:
        changed = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
        return len(changed).to_bytes(8, "little") + changed + data

    def entry(**changes):
        return file(header | {first: header[first] | changes})

    twice = json.dumps({first: header[second]})[1:-1].encode()
    begin, end = header[first]["data_offsets"]
    found = {
        "a huge header": (2**40).to_bytes(8, "little") + good[8:],
        "a header longer than the file": (len(good) + 1).to_bytes(8, "little") + good[8:],
        "a header of no length": bytes(8) + good[8:],
        "half a header": (size // 2).to_bytes(8, "little") + good[8:],
        "a header that is a list": file(b"[]"),
        "a header that is no text": file(b"\xff\xfe" * 20),
        "a key twice": file(text.rstrip()[:-1] + b", " + twice + b"}"),
        "an offset beyond the end": entry(data_offsets=[begin, end + 10**9]),
        "an offset below zero": entry(data_offsets=[-end, 0]),
        "offsets backwards": entry(data_offsets=[end, begin]),
        "two tensors at one place": entry(data_offsets=header[second]["data_offsets"]),
        "a shape that is not there": entry(shape=[2**31, 2**31]),
        "a negative shape": entry(shape=[-1, 4]),
        "a type that is none": entry(dtype="PICKLE"),
        "no offsets": file(header | {first: dict(dtype="F32", shape=[1])}),
        "metadata that is no text": file(header | {"__metadata__": {"gralora_diffusion": {"config": {}}}}),
        "bytes too many": good + b"surplus",
        "nested too deep": file(b'{"a":' * 5000 + b"1" + b"}" * 5000),
    }
    random = torch.Generator().manual_seed(0)
    for _ in range(60):  # anywhere in the header, and cut anywhere
        place, value = (int(torch.randint(n, (), generator=random)) for n in (8 + size, 256))
        found[f"byte {place} is {value}"] = good[:place] + bytes([value]) + good[place + 1 :]
        found[f"{place} bytes"] = good[:place]
    return found


def refusal(pipeline, path) -> str:
    try:
        load_adapter(pipeline, path)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.filterwarnings(
    "ignore:.*was trained on a different base"
)  # a changed byte in the base's fingerprint
def test_any_damage_to_a_header_is_one_sentence(tmp_path):
    """A changed byte may leave a valid file; then it is read as before, and never as another adapter."""
    adapter = Adapter.from_models(
        adapted_pipeline(AdapterConfig(rank=16, k=2, targets=r"mid_block.*attn1\.to_[qv]$"), ["unet"])[1]
    )
    pipeline, read = load_sdxl(), 0
    for write in (write_native, write_comfyui):
        write(tmp_path / "good.safetensors", adapter)
        for what, content in headers_that_lie((tmp_path / "good.safetensors").read_bytes()).items():
            (tmp_path / "x.safetensors").write_bytes(content)
            sentence = refusal(pipeline, tmp_path / "x.safetensors")
            assert sentence or what.startswith("byte"), what
            assert "\n" not in sentence, what
            assert bool(sentence) != bool(adapted_layers(pipeline.unet)), what
            read += not sentence
            remove(pipeline)
    assert read < 60


@pytest.mark.parametrize("pickled", [False, True], ids=["torch.save", "pickle"])
def test_a_pickle_with_another_name_is_not_run(pickled, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "run",))

    with open(tmp_path / "x.safetensors", "wb") as file:
        (pickle.dump if pickled else torch.save)({"unet.x.lora_A": Trap()}, file)
    with pytest.raises(ConfigError, match="is a pickle"):
        load_adapter(load_sdxl(), tmp_path / "x.safetensors")
    assert not (tmp_path / "run").exists()


def test_of_a_stopped_run_the_checkpoint_is_named(tmp_path):
    (tmp_path / "checkpoint-7").mkdir()
    (tmp_path / "checkpoint-7" / "adapter.safetensors").write_bytes(b"")
    with pytest.raises(
        ConfigError, match=r"was stopped before it finished: give its checkpoint, .*checkpoint-7"
    ):
        read_adapter(tmp_path)
