"""Memory of a device: what counts as running out of it, and devices and systems that report less."""

import ctypes
import os
import sys

import pytest
import torch

from gralora_diffusion.cli.main import main
from gralora_diffusion.devices import forget_peak, free_memory, is_out_of_memory, peak_memory

MESSAGES = {
    "CUDA out of memory. Tried to allocate 2.00 GiB": True,
    "MPS backend out of memory (MPS allocated: 18.05 GB)": True,
    "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory": True,
    "[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: not enough memory": True,  # on Windows
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`": True,
    "CUDA error: device-side assert triggered": False,
}


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_of_running_out_of_memory(message):
    assert is_out_of_memory(RuntimeError(message)) == MESSAGES[message]
    assert not is_out_of_memory(ValueError(message))


def test_a_gpu_that_does_not_report_its_free_memory(monkeypatch):
    """As some Intel GPUs: what this process has not allocated counts as free."""

    def unsupported(_):
        raise RuntimeError("The device doesn't support querying the available free memory")

    properties = type("Properties", (), dict(total_memory=1000))
    module = type("Module", (), dict(get_device_properties=lambda _: properties))
    monkeypatch.setattr(torch, "get_device_module", lambda _: module)
    monkeypatch.setattr(torch.accelerator, "get_memory_info", unsupported)
    monkeypatch.setattr(torch.accelerator, "memory_reserved", lambda _: 300)
    monkeypatch.setattr(torch.accelerator, "memory_allocated", lambda _: 200)
    assert free_memory(torch.device("xpu")) == 800


def test_the_peak_is_forgotten_on_windows_too(monkeypatch):
    def no_library(_):
        raise TypeError("LoadLibrary() argument 1 must be str, not None")

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    monkeypatch.setattr(sys, "platform", "win32")
    forget_peak(torch.device("cpu"))
    monkeypatch.undo()
    assert peak_memory(torch.device("cpu")) > 0


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_a_users_settings_of_the_allocator_are_kept(monkeypatch, name):
    monkeypatch.setattr(sys, "platform", "linux")
    for other in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "max_split_size_mb:128")
    before = {key for key in os.environ if key.endswith("ALLOC_CONF")}
    with pytest.raises(SystemExit):
        main(["sample", "--no-such-option"])
    assert {key for key in os.environ if key.endswith("ALLOC_CONF")} == before
    assert os.environ[name] == "max_split_size_mb:128"
