"""A device without float64, such as Apple's: the mathematics that needs it runs on the CPU."""

import json

SCRIPT = """
import json
import counters
import stand_ins
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gralora_diffusion import devices
from gralora_diffusion.adapters.gora import effective_rank, energies, gradient_factors, least_squares, matched
from gralora_diffusion.adapters.low_rank import truncate


class Wide(TorchDispatchMode):
    \"\"\"Lists what gives float64 on the card, and decompositions there.\"\"\"

    found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        first = result[0] if isinstance(result, tuple | list) else result
        if isinstance(first, torch.Tensor) and first.is_cuda:
            decomposes = "linalg" in function.name() and "norm" not in function.name()
            if first.dtype == torch.float64 or decomposes:
                self.found.append(function.name())
        return result


def run():
    G = torch.ones(8, 6, device="cuda")
    energies(G, 2)
    effective_rank(G)
    down, up = gradient_factors(G, 2, 2, "svd")
    A = torch.ones(2, 2, 1, 3, device="cuda")
    B = least_squares(torch.ones(2, 2, 4, 1, device="cuda"), A)
    matched(A, B, 1.0)
    truncate(down, up, 1)
    return down.is_cuda


found = {}
torch.linalg.solve = lambda A, B: B + 0 * A.sum()  # copies from the card are zero: no inverse
with Wide():
    devices.WITHOUT_FLOAT64 = ("cuda",)
    stand_ins.set_reads(1.0)
    found["result on the card"] = run()
found["without"] = Wide.found
Wide.found = []
devices.WITHOUT_FLOAT64 = ()
with Wide():
    devices.in_float64(torch.ones(2, device="cuda"))
found["with"] = Wide.found
print(json.dumps(found))
"""


def test_nothing_is_float64_on_a_device_without_it(script, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = script(tmp_path / "script.py")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["result on the card"]
    assert found["without"] == []
    assert found["with"], "nothing is found where there is something"
