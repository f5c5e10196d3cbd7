"""Threads of the page that first need diffusers and transformers at the same moment."""

import subprocess
import sys

AT_ONCE = """
import threading
from gralora_diffusion.devices import best_device
from gralora_diffusion.sdxl.load import load_sdxl, sdxl_shapes, vae_shapes
from gralora_diffusion.training.library_memory import library_memory

tasks = [lambda: library_memory(best_device()), sdxl_shapes, vae_shapes, load_sdxl, sdxl_shapes, load_sdxl]
together = threading.Barrier(len(tasks))

def run(task):
    together.wait()
    task()
    print("done")

threads = [threading.Thread(target=run, args=[task]) for task in tasks]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_threads_that_import_at_once_all_get_what_they_need():
    done = subprocess.run([sys.executable, "-c", AT_ONCE], capture_output=True, text=True, timeout=600)
    assert done.stdout.split() == ["done"] * 6, done.stderr
