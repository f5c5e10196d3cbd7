"""Which wing may import which, and what no file may hold."""

import ast
from pathlib import Path

import pytest

import gralora_diffusion

PACKAGE = Path(gralora_diffusion.__file__).parent
FLOORS = (  # lowest first; what stands on one floor may import lower floors, and its own wing
    ("options", "unknown_options", "console", "devices", "files", "seeding"),
    ("checks", "presets"),
    ("config",),
    ("adapters", "command_line"),
    ("sdxl",),
    ("data", "formats"),
    ("evaluation",),
    ("training",),
    ("experiments", "ui"),
    ("cli",),
)
FLOOR = {wing: floor for floor, wings in enumerate(FLOORS) for wing in wings}
OUTSIDE = {
    "__init__",
    "__main__",
    "integrations",
}  # the package's face, and a node that ComfyUI loads by its path
MODULES = 100  # at least so many files are walked, so that a test that sees none cannot pass


def modules(package: Path) -> dict[str, Path]:
    """{dotted name without the package's own: file}; a wing's __init__.py has the name of the wing"""
    found = {}
    for path in package.rglob("*.py"):
        name = ".".join(path.relative_to(package).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports_of(name: str, path: Path, known: set[str]) -> set[str]:
    """The package's own modules that a file imports, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        else:
            continue
        assert not {n.split(".")[0] for n in names} & {"scripts", "ui", "tests"}, name
        found |= {n.removeprefix("gralora_diffusion.") for n in names}
    return (found & known) - {name}


def upward(imports: dict[str, set[str]]) -> list[str]:
    """Imports that lead from a wing to one on the same floor or a higher one."""
    wrong = []
    for name, needed in imports.items():
        wing = name.split(".")[0]
        for other in sorted(needed):
            above = other.split(".")[0]
            if wing not in OUTSIDE and above != wing and FLOOR[above] >= FLOOR[wing]:
                wrong.append(f"{name} imports {other}")
    return wrong


def cycle(imports: dict[str, set[str]]) -> list[str]:
    """The modules that are left when those without imports among the rest are taken away, again and again."""
    left = dict(imports)
    while leaves := [name for name, needed in left.items() if not needed & left.keys()]:
        for name in leaves:
            del left[name]
    return sorted(left)


def all_imports(package: Path) -> dict[str, set[str]]:
    found = modules(package)
    return {name: imports_of(name, path, set(found)) for name, path in found.items()}


def test_wings_import_only_what_is_below_them():
    imports = all_imports(PACKAGE)
    assert len(imports) >= MODULES
    assert {name.split(".")[0] for name in imports} == FLOOR.keys() | OUTSIDE
    assert upward(imports) == []
    assert cycle(imports) == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("adapters/linear.py", "from gralora_diffusion.training.loss import target"),
        ("options.py", "from gralora_diffusion import config"),
        ("data/cache.py", "import gralora_diffusion.formats.read"),
        ("config/train.py", "def late():\n    from gralora_diffusion.cli.main import main"),
    ],
)
def test_a_broken_wing_is_seen(tmp_path, name, line):
    for path in PACKAGE.rglob("*.py"):
        copy = tmp_path / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text() + (f"\n\n{line}\n" if path == PACKAGE / name else ""))
    assert upward(all_imports(tmp_path))


def test_a_cycle_is_seen():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


def test_the_top_of_the_package_is_the_ground_floor_and_the_wings():
    ground = {
        "__init__",
        "__main__",
        "options",
        "checks",
        "command_line",
        "console",
        "devices",
        "files",
        "presets",
        "seeding",
        "unknown_options",
    }
    assert {path.stem for path in PACKAGE.glob("*.py")} == ground


def test_no_pickle_no_eval_no_shell():
    files = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "scripts").rglob("*.py")]
    assert len(files) >= MODULES
    forbidden = (
        "import pickle",
        "shell=True",
        "os.system",
        " eval(",
        " exec(",
        "trust_remote_code",
        "weights_only=False",
    )
    for path in files:
        text = path.read_text()
        for word in forbidden:
            assert word not in text, (path, word)
