"""What an adapter file holds: kinds, ranks, norms by block, trigger words and header, without a base."""

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gralora_diffusion.adapters.deltas import Delta
from gralora_diffusion.console import printable
from gralora_diffusion.formats.adapter_state import Adapter
from gralora_diffusion.formats.key_names import is_embedding
from gralora_diffusion.formats.kohya_header import tags_of
from gralora_diffusion.formats.read import file_in, read_adapter
from gralora_diffusion.formats.safetensors_files import opened
from gralora_diffusion.sdxl.objective import objective_text

BLOCK = re.compile(r"((?:down|up)_blocks\.\d+|mid_block|(?:text_model\.)?encoder|[^.]+)")
TRIGGERS = 20  # words of the tag frequencies


@dataclass
class Inspection:
    """path, bytes, dtypes; kinds: {kind: changes}; ranks: {rank: layers}; norms: {block: |delta|}, Frobenius.

    unknown_norms: changes whose size depends on the base; base, objective, triggers, alphas and header as the
    file has them.
    """

    path: str
    bytes: int
    dtypes: dict[str, int]
    kinds: dict[str, int]
    components: list[str]
    ranks: dict[int, int]
    alphas: dict[str, int]
    norms: dict[str, float]
    unknown_norms: int
    base: str | None
    objective: dict
    triggers: list[str]
    header: dict = field(default_factory=dict)

    def to_json(self) -> dict:
        return asdict(self)

    def text(self) -> str:
        """Lines for people; long headers are cut."""
        rows = [
            ("file", f"{self.path}, {self.bytes / 2**20:.1f} MiB, {counted(self.dtypes)}"),
            ("kind", f"{counted(self.kinds)} in {', '.join(self.components)}"),
            ("ranks", counted(self.ranks) or "none"),
            ("alpha", counted(self.alphas) or "none in the file"),
            ("base", self.base or "not named"),
            ("prediction", objective_text(self.objective)),
            ("trigger words", ", ".join(self.triggers) or "none in the file"),
        ]
        lines = [f"{name:<14} {value}" for name, value in rows]
        width = max(map(len, ["block", *self.norms]))
        lines += ["", f"{'block':<{width}}  norm of the delta"]
        lines += [f"{block:<{width}}  {norm:.4g}" for block, norm in self.norms.items()]
        if self.unknown_norms:
            lines.append(f"not included, since their norms depend on the base: {self.unknown_norms}")
        return "\n".join(map(printable, lines))

    def header_text(self) -> str:
        return json.dumps(self.header, indent=2, ensure_ascii=False)


def inspect_adapter(path: str | Path) -> Inspection:
    """Read an adapter and describe it.  Raises ConfigError as read_adapter() does."""
    adapter = read_adapter(path)
    file = file_of(Path(path))
    header, dtypes, alphas = {}, Counter(), Counter()
    if file is not None:
        with opened(file) as tensors:
            header = dict(tensors.metadata() or {})
            for key in tensors.keys():  # noqa: SIM118 - not a dict
                if is_embedding(key):
                    continue
                if key.endswith("alpha"):
                    alphas[f"{float(tensors.get_tensor(key).float().flatten()[0]):g}"] += 1
                else:
                    dtypes[tensors.get_slice(key).get_dtype()] += 1
    kinds, ranks = Counter(), Counter()
    squares: dict[str, float] = {}
    unknown = 0
    for component, name, delta in adapter.changes():
        kinds[delta.NAME if name.endswith(".weight") else f"{delta.NAME} of a bias"] += 1
        if delta.rank is not None:
            ranks[delta.rank] += 1
        square = squared_norm(delta)
        if square is None:
            unknown += 1
            continue
        block = f"{component}.{BLOCK.match(name)[1]}"
        squares[block] = squares.get(block, 0.0) + square
    return Inspection(
        path=str(path),
        bytes=file.stat().st_size
        if file
        else sum(part.stat().st_size for part in Path(path).rglob("*.safetensors")),
        dtypes=dict(dtypes),
        kinds=dict(kinds.most_common()),
        components=adapter.components,
        ranks=dict(sorted(ranks.items())),
        alphas=dict(alphas),
        norms={block: square**0.5 for block, square in squares.items()},
        unknown_norms=unknown,
        base=base_of(adapter, header),
        objective=adapter.facts.get("objective", {}),
        triggers=triggers_of(adapter, header),
        header=header,
    )


def file_of(path: Path) -> Path | None:
    """The one file that an adapter is read from, None for PEFT's folders."""
    return path if path.is_file() else file_in(path)


def size_of(folder: Path) -> int:
    """Bytes of the tensors in PEFT's folders."""
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def squared_norm(delta: Delta) -> float | None:
    """|delta|^2; of a pair without forming it: trace((up^T up)(down down^T)). None where it needs a base."""
    if delta.needs_base:
        return None
    pair = delta.pair()
    if pair is None:
        return float(delta.delta().double().square().sum())
    down, up = pair[0].double(), pair[1].double()
    return max(0.0, float(((up.T @ up) * (down @ down.T)).sum()))


def base_of(adapter: Adapter, header: dict[str, str]) -> str | None:
    """The base as the file names it."""
    own = adapter.facts.get("base", {}).get("name")
    names = ("ss_sd_model_name", "ss_base_model_version", "modelspec.architecture")
    return own or next((header[name] for name in names if header.get(name)), None)


def triggers_of(adapter: Adapter, header: dict[str, str]) -> list[str]:
    """The trigger phrase, our trigger prompt, and the commonest captions or tags of the training images."""
    found = [
        header.get("modelspec.trigger_phrase"),
        (adapter.facts.get("prompts") or {}).get("instance_prompt"),
    ]
    counts: Counter = Counter()
    try:
        for tags in json.loads(header.get("ss_tag_frequency", "{}")).values():
            counts.update({str(tag).strip(): int(count) for tag, count in tags.items()})
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError):
        pass  # not what kohya's scripts write: there are no tags to show
    found += [tag for tag, _ in counts.most_common(TRIGGERS)] or tags_of(adapter)[:TRIGGERS]
    return [tag for tag in dict.fromkeys(found) if tag]


def counted(values: dict) -> str:
    """'3 x 8, 1 x 16' of {8: 3, 16: 1}"""
    return ", ".join(f"{count} x {value}" for value, count in list(values.items())[:8])
