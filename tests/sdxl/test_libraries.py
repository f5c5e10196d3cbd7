"""Threads of the page that first need diffusers and transformers at the same moment."""

import ast
import subprocess
import sys

from test_architecture import MODULES, PACKAGE

LAZY = ("diffusers", "transformers")  # which import their modules when first asked
ALONE = ("cli", "experiments")  # wings that no thread of the page is in
AT_ONCE = """
import threading
from gralora_diffusion.devices import best_device
from gralora_diffusion.sdxl.load import load_sdxl, sdxl_shapes, vae_shapes
from gralora_diffusion.training.library_memory import library_memory

tasks = [lambda: library_memory(best_device()), sdxl_shapes, vae_shapes, load_sdxl, sdxl_shapes, load_sdxl]
together = threading.Barrier(len(tasks))
finished = []

def run(task):
    together.wait()
    task()
    finished.append(task)

threads = [threading.Thread(target=run, args=[task]) for task in tasks]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(finished))
"""


def test_threads_that_import_at_once_all_get_what_they_need():
    done = subprocess.run([sys.executable, "-c", AT_ONCE], capture_output=True, text=True, timeout=600)
    assert done.stdout == "6\n", done.stderr


def takers(path) -> list[tuple[str, bool]]:
    """(name, whether it calls import_libraries()) of each function that imports from a lazy library."""
    found = []
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef):
            continue
        nodes = list(ast.walk(function))
        names = [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
        names += [node.names[0].name for node in nodes if isinstance(node, ast.Import)]
        if any(name.split(".")[0] in LAZY for name in names):
            calls = [node.func for node in nodes if isinstance(node, ast.Call)]
            found.append((function.name, any(getattr(f, "id", "") == "import_libraries" for f in calls)))
    return found


def test_whoever_takes_from_the_libraries_imports_them_first():
    own = PACKAGE / "sdxl" / "libraries.py"
    files = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in ALONE]
    assert len(files) >= MODULES
    found = {path.relative_to(PACKAGE).as_posix(): takers(path) for path in files if path != own}
    assert len(found["sdxl/load.py"]) == 4
    unsafe = [f"{path}: {name}" for path, names in found.items() for name, safe in names if not safe]
    assert not unsafe
