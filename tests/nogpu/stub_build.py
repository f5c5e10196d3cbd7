"""Build no_gpu.c for the torch that is installed: a library to preload, with libcuda and NVML beside it."""

import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
CACHE = HERE.parent.parent / "build" / "no-gpu"
RUNTIME = "libno_gpu.so"
DRIVER = "libcuda.so.1"
MANAGEMENT = "libnvidia-ml.so.1"
LIBRARIES = ("libtorch_cuda.so", "libc10_cuda.so", "libtorch_python.so")
RUNTIME_FUNCTION = re.compile(r"(cuda|cublas|cudnn|__cuda)\w+")
DRIVER_FUNCTION = re.compile(r"cu[A-Z]\w+")
OLDEST = 13000  # CUDART_VERSION: before it some functions had other parameters
FLAGS = ("-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Wno-cpp")


def torch_folder() -> Path | None:
    """Where torch is installed; it is not imported."""
    spec = importlib.util.find_spec("torch")
    return Path(next(iter(spec.submodule_search_locations))) if spec else None


def cuda_headers() -> Path | None:
    """The folder of cuda_runtime_api.h in the nvidia-cuda-runtime wheel that torch's CUDA build needs."""
    torch = torch_folder()
    if torch is None:
        return None
    found = sorted(torch.parent.glob("nvidia/*/include/cuda_runtime_api.h"))
    return found[0].parent if found else None


def why_not() -> str | None:
    """Why the stub cannot be built here, or None."""
    if sys.platform != "linux":
        return "it needs Linux"
    for tool in ("gcc", "nm"):
        if not shutil.which(tool):
            return f"it needs {tool}"
    torch = torch_folder()
    if torch is None or not (torch / "lib" / "libtorch_cuda.so").is_file():
        return "it needs torch's CUDA build"
    headers = cuda_headers()
    if headers is None:
        return "it needs the headers of the nvidia-cuda-runtime wheel"
    version = re.search(r"define CUDART_VERSION +(\d+)", (headers / "cuda_runtime_api.h").read_text())
    if int(version[1]) < OLDEST:
        return "it needs torch's build for CUDA 13 or newer"
    return None


def symbols(library: Path, which: str) -> set[str]:
    """nm's defined or undefined dynamic symbols, without versions."""
    command = ["nm", "-D", f"--{which}-only", library]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    return {line.split()[-1].partition("@")[0] for line in listed.stdout.splitlines() if line}


def compile_c(output: Path, *sources: Path, options: tuple[str, ...] = ()) -> None:
    include = ["-I", str(HERE / "include"), "-isystem", str(cuda_headers())]
    command = ["gcc", *FLAGS, *options, *include, "-o", str(output), *map(str, sources), "-lpthread"]
    subprocess.run(command, check=True)


def succeeding(names: set[str]) -> str:
    """C source of functions that return success and do nothing."""
    lines = [f"int {name}(void) {{ return 0; }}" for name in sorted(names)]
    return "\n".join([*lines, ""])


def build(folder: Path) -> None:
    """All libraries into `folder`; what torch needs and no_gpu.c lacks is generated."""
    libraries = torch_folder() / "lib"
    source, runtime = HERE / "no_gpu.c", folder / RUNTIME
    first, rest, driver, empty = (folder / name for name in ("first.so", "rest.c", "driver.c", "empty.c"))
    compile_c(first, source)
    have = symbols(first, "defined")
    needed = set()
    for name in LIBRARIES:
        needed |= matching(RUNTIME_FUNCTION, symbols(libraries / name, "undefined"))
    rest.write_text(succeeding(needed - have))
    compile_c(runtime, source, rest, options=(f"-Wl,-soname,{RUNTIME}",))
    of_driver = matching(DRIVER_FUNCTION, symbols(libraries / "libcaffe2_nvrtc.so", "undefined"))
    driver.write_text(succeeding(of_driver - have))
    empty.write_text("")
    for name, own in ((MANAGEMENT, empty), (DRIVER, driver)):  # the rest is found in RUNTIME
        compile_c(folder / name, own, runtime, options=(f"-Wl,-soname,{name},--no-as-needed",))


def matching(pattern: re.Pattern, names: set[str]) -> set[str]:
    return {name for name in names if pattern.fullmatch(name)}


def built() -> Path:
    """The folder with the libraries; they are built once for each version of torch and of the sources."""
    torch = torch_folder()
    parts = [(torch / "version.py").read_bytes(), str(torch).encode()]
    for path in (HERE / "no_gpu.c", HERE / "include" / "crt" / "host_defines.h", Path(__file__)):
        parts.append(path.read_bytes())
    folder = CACHE / hashlib.sha256(b"".join(parts)).hexdigest()[:16]
    if not (folder / DRIVER).is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(dir=CACHE))
        build(staged)
        try:
            staged.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(staged)
    return folder


if __name__ == "__main__":
    print(built())
