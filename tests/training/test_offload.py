"""A UNet that is offloaded block by block computes the same bits, and few blocks are there at once."""

import torch

from gralora_diffusion import AdapterConfig, inject, load_sdxl
from gralora_diffusion.adapters.registry import adapter_parameters
from gralora_diffusion.sdxl.base import blank_inputs, predict
from gralora_diffusion.training.offload import Offload

CPU = torch.device("cpu")


def unet_with_adapters():
    unet = load_sdxl().unet
    torch.manual_seed(0)
    inject(unet, AdapterConfig(rank=8, k=2))
    for name, parameter in adapter_parameters(unet).items():
        if name.endswith("_B"):
            torch.nn.init.normal_(parameter, std=0.1)
    unet.train()
    unet.enable_gradient_checkpointing()
    return unet


def gradients(unet, inputs) -> list[torch.Tensor]:
    unet.zero_grad(set_to_none=True)
    predict(unet, *inputs).square().mean().backward()
    return [parameter.grad.clone() for parameter in adapter_parameters(unet).values()]


def test_gradients_are_equal_and_two_blocks_are_there_at_once(monkeypatch):
    plain, offloaded = unet_with_adapters(), unet_with_adapters()
    offload = Offload(offloaded, CPU)
    assert len(offload.blocks) > 10
    noisy, timesteps, prompts, sizes = blank_inputs(plain.config, 2, 8)
    torch.nn.init.normal_(noisy)
    inputs = noisy, timesteps + 300, prompts, sizes
    most = []
    real = type(offload.blocks[0]).use

    def counted(block):
        real(block)
        most.append(sum(other.resident is not None for other in offload.blocks))

    monkeypatch.setattr(type(offload.blocks[0]), "use", counted)
    for _ in range(2):  # the order of the first pass is not known before
        expected, found = gradients(plain, inputs), gradients(offloaded, inputs)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert max(most) <= 2
    assert len(most) > 3 * len(offload.blocks), "most are used in the backward pass too"
    with torch.no_grad():
        assert torch.equal(predict(plain.eval(), *inputs), predict(offloaded.eval(), *inputs))


def test_the_next_block_is_on_its_way():
    offload = Offload(unet_with_adapters(), CPU)
    order = list(range(len(offload.blocks)))
    offload.earlier = order
    assert [offload.after(number) for number in order] == [*order[1:], None]
    assert [offload.before(number) for number in reversed(order)] == [*reversed(order[:-1]), None]
    offload.begin()
    assert offload.after(3) is None, "another order than in the pass before"
