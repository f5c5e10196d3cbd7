"""The stub itself: what is wrong on a GPU is wrong on it, and it counts what a GPU's profiler would."""

import json

import pytest

SCRIPT = """
import json
import counters
import full_card
import stand_ins
import torch

found = {}


def kind_of(function):
    try:
        function()
    except RuntimeError as error:
        return type(error).__name__
    return "nothing"


def counted(function):
    counters.reset()
    function()
    report = counters.report()
    return [report.counters["kernels"], report.counters["products"], report.syncs, report.copies]


on_card = torch.ones(8, 8, device="cuda")
half = on_card.half()
on_cpu = torch.ones(8, 8)
image = torch.ones(1, 8, 8, 8, device="cuda")
convolution = torch.nn.Conv2d(8, 4, 3, padding=1)
found["two devices"] = kind_of(lambda: on_card + on_cpu)
found["two devices, product"] = kind_of(lambda: on_card @ on_cpu)
found["two dtypes, product"] = kind_of(lambda: on_card @ half)
found["two devices, convolution"] = kind_of(lambda: convolution(image))
convolution.cuda()
found["two dtypes, convolution"] = kind_of(lambda: convolution(image.half()))
found["one device"] = kind_of(lambda: convolution(image))
found["too large"] = kind_of(lambda: torch.empty(2**31, device="cuda"))

found["sum"] = counted(lambda: on_card + on_card)
found["product"] = counted(lambda: on_card @ on_card)
found["item"] = counted(lambda: on_card[0, 0].item())
found["to the card"] = counted(lambda: on_cpu.to("cuda"))
found["to the host"] = counted(lambda: on_card.cpu())
pinned = on_cpu.pin_memory()
found["to the card, pinned"] = counted(lambda: pinned.to("cuda", non_blocking=True))
found["wait"] = counted(torch.cuda.synchronize)
found["names"] = sum(counters.launches_by_name().values())
on_card.exp()
found["exp"] = [name for name in counters.launches_by_name() if "exp" in name]

before = torch.cuda.memory_allocated()
with full_card.full_card():
    found["full"] = kind_of(lambda: torch.empty(1, device="cuda"))
found["left"] = torch.cuda.memory_allocated() - before
torch.cuda.reset_peak_memory_stats()
large = torch.empty(2**28, device="cuda")
del large
found["peak"] = torch.cuda.max_memory_allocated() - before
stand_ins.set_reads(3.0)
found["reads"] = [on_card.sum().item(), bool((on_card == 1).all()), int(on_card.argmax())]
print("FOUND" + json.dumps(found))
"""


@pytest.fixture(scope="module", params=["", "expandable_segments:True"], ids=["segments", "expandable"])
def found(script, tmp_path_factory, request):
    file = tmp_path_factory.mktemp("stub") / "script.py"
    file.write_text(SCRIPT)
    done = script(file, gib=2, PYTORCH_CUDA_ALLOC_CONF=request.param)
    assert "FOUND" in done.stdout, done.stderr[-3000:]
    return json.loads(done.stdout.partition("FOUND")[2])


def test_tensors_of_two_devices_or_dtypes_do_not_meet(found):
    assert found["one device"] == "nothing"
    operations = ("two devices", "two devices, product", "two dtypes, product")
    convolutions = ("two devices, convolution", "two dtypes, convolution")
    assert {name: found[name] for name in (*operations, *convolutions)} == dict.fromkeys(
        (*operations, *convolutions), "RuntimeError"
    )


def test_memory_is_limited(found):
    assert (found["too large"], found["full"]) == ("OutOfMemoryError", "OutOfMemoryError")
    assert found["left"] == 0
    assert found["peak"] == 2**30


def test_launches_synchronizations_and_copies_are_counted(found):
    assert found["sum"] == [1, 0, 0, 0]
    assert found["product"] == [0, 1, 0, 0]
    assert found["item"] == [0, 0, 1, 1]
    assert found["to the card"] == [0, 0, 1, 1]
    assert found["to the host"] == [0, 0, 1, 1]
    assert found["to the card, pinned"] == [0, 0, 0, 1]
    assert found["wait"] == [0, 0, 1, 0]
    assert found["names"] == 0
    assert len(found["exp"]) == 1


def test_what_is_read_back_can_be_chosen(found):
    assert found["reads"] == [3.0, True, 0]
