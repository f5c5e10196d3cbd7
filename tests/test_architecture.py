"""Who may import whom: no cycle in the package, and nothing in it imports scripts or ui."""

import ast
from pathlib import Path

import gralora_diffusion

PACKAGE = Path(gralora_diffusion.__file__).parent


def test_no_import_cycle():
    imports = {}
    for path in PACKAGE.glob("*.py"):
        found = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
        assert not [n for n in found if n.level == 0 and n.module.split(".")[0] in ("scripts", "ui", "tests")]
        imports[path.stem] = {n.module for n in found if n.level == 1 and n.module} & {p.stem for p in PACKAGE.glob("*.py")}
    while imports:
        leaves = {name for name, needs in imports.items() if not needs & imports.keys()}
        assert leaves, f"a cycle among {sorted(imports)}"
        imports = {name: needs for name, needs in imports.items() if name not in leaves}


def test_no_pickle_no_eval_no_shell():
    for path in [*PACKAGE.glob("*.py"), *(PACKAGE.parent / "scripts").glob("*.py")]:
        text = path.read_text()
        for word in ("import pickle", "shell=True", "os.system", " eval(", " exec(", "trust_remote_code", "weights_only=False"):
            assert word not in text, (path, word)
