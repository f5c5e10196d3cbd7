"""The concepts of a run: folders of images, each with repeats, captions and class images of its own.

They are the images of --instance_data_dir, its subfolders where these are named as kohya's ("10_sks dog"), or
the entries of the file of --concepts.
"""

import contextlib
import dataclasses
import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gralora_diffusion.checks import in_home
from gralora_diffusion.config import TrainConfig
from gralora_diffusion.data.listing import has_images, listing, numbered, printable, reason_of
from gralora_diffusion.data.text_files import kind_of, note_guessed, read_text
from gralora_diffusion.options import ConfigError, did_you_mean, from_dict

EXAMPLE = Path(__file__).parent.parent / "example"  # six images of a robot, made for this project
EXAMPLE_PROMPT = "a photo of sks robot"
FOLDER, CLASS_FOLDER, MASK_FOLDER = "folder", "class_folder", "mask_folder"
CLASS_KEYS = (CLASS_FOLDER, "class_prompt", "num_class_images")
KEYS = {  # of an entry: the option that it stands for
    FOLDER: "instance_data_dir",
    "prompt": "instance_prompt",
    CLASS_FOLDER: "class_data_dir",
    **{name: name for name in ("repeats", "class_prompt", "num_class_images", "caption_column")},
    **{name: name for name in ("caption_dropout", "shuffle_captions", "keep_tokens")},
    **{name: name for name in ("caption_lines", "caption_wildcards")},
    MASK_FOLDER: "mask_dir",
}
ELSEWHERE = {  # {key: what other trainers' configs call it}
    FOLDER: ("image_dir", "path", "folder_path", "data_dir", "train_data_dir", "instance_data_dir"),
    "repeats": ("num_repeats", "repeat"),
    "prompt": ("class_tokens", "trigger_word", "default_caption", "instance_prompt", "token"),
    CLASS_FOLDER: ("class_data_dir", "reg_data_dir"),
    MASK_FOLDER: ("mask_dir", "mask_path", "conditioning_data_dir"),
    "caption_dropout": ("caption_dropout_rate",),
    "shuffle_captions": ("shuffle_caption", "shuffle_tokens"),
    "caption_wildcards": ("enable_wildcard",),
}
MAX_BYTES = 2**20  # of the file


@dataclass(frozen=True)
class Concept:
    """One folder of images. config: the run's, with the options of this concept."""

    folder: Path
    config: TrainConfig
    repeats: int = 1  # beside --repeats
    numbered: bool = False  # whether repeats and caption are from the folder's name
    unused_prompt: str | None = None  # the prompt of the options, which the folder's name replaces
    entry: str = ""  # "entry 2 of FILE" in the file of --concepts

    @property
    def class_key(self) -> tuple | None:
        """Concepts of one key share their class images; None without class images."""
        config = self.config
        if not config.with_prior_preservation:
            return None
        return config.class_data_dir, config.class_prompt, config.num_class_images


def concepts_of(config: TrainConfig) -> list[Concept]:
    """The concepts of a run that reads folders. Raises ConfigError for a file that cannot be used."""
    if config.concepts is not None:
        return concepts_in_file(Path(config.concepts), config)
    if config.instance_data_dir is None:
        prompt = config.instance_prompt or EXAMPLE_PROMPT
        return [Concept(EXAMPLE, dataclasses.replace(config, instance_prompt=prompt))]
    return in_folder(Path(config.instance_data_dir), config)


def folder_concepts(config: TrainConfig) -> list[Concept]:
    """concepts_of(), and none for a dataset."""
    return [] if config.dataset_name is not None else concepts_of(config)


def in_folder(folder: Path, config: TrainConfig, repeats: int = 1) -> list[Concept]:
    """The folder, or its subfolders "10_sks dog" where it holds no images itself."""
    subfolders = [] if has_images(folder) else numbered(folder)
    if not subfolders:
        return [Concept(folder, config, repeats)]
    found = []
    for path, times, words in subfolders:
        prompt = config.instance_prompt
        own = dataclasses.replace(config, instance_prompt=words or prompt)
        found.append(Concept(path, own, repeats * times, True, prompt if words else None))
    return found


def left_out(folder: Path, option: str = "instance_data_dir") -> list[str]:
    """Names of the subfolders that in_folder() does not read, where it reads the others."""
    if has_images(folder) or not (read := numbered(folder)):
        return []
    names = {path.name for path, _, _ in read}
    return [name for name in listing(folder, option)[1] if name not in names]


def concepts_in_file(file: Path, config: TrainConfig) -> list[Concept]:
    """The entries of a JSON or TOML file. Raises ConfigError that names the entry."""
    found = []
    for number, entry in enumerate(entries_of(file), 1):
        where = f"entry {number} of {printable(file)}"
        with in_entry(where):
            concepts = from_entry(entry, file.parent, config)
        found += [dataclasses.replace(concept, entry=where) for concept in concepts]
    if config.with_prior_preservation and not any(concept.class_key for concept in found):
        problem = f"--with_prior_preservation needs class images, and {printable(file)} names none"
        ways = (
            "give class_folder and class_prompt in an entry, or --class_data_dir and --class_prompt for all"
        )
        raise ConfigError(f"{problem}: {ways}", option="with_prior_preservation")
    return found


@contextlib.contextmanager
def in_entry(where: str) -> Iterator[None]:
    """Within it, a ConfigError begins with the place of an entry and names its keys instead of options."""
    keys = {f"--{option}": key for key, option in KEYS.items()}
    try:
        yield
    except ConfigError as error:
        if not where:
            raise
        text = re.sub(r"--\w+", lambda match: keys.get(match[0], match[0]), str(error))
        raise ConfigError(f"{where}: {text}", option="concepts") from None


def entries_of(file: Path) -> list:
    """What the file lists."""
    name = printable(file)
    if file.suffix.lower() in (".yaml", ".yml"):
        raise ConfigError(f"--concepts names a JSON or TOML file, and {name} is YAML", option="concepts")
    try:
        read = read_text(file, MAX_BYTES)
        note_guessed(read, file)
        text = read.text
        content = tomllib.loads(text) if file.suffix.lower() == ".toml" else json.loads(text)
    except (json.JSONDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        kind = "TOML" if file.suffix.lower() == ".toml" else "JSON"
        problem = f"the file of --concepts is not {kind} ({reason_of(error)}): {name}"
        raise ConfigError(problem, option="concepts") from None
    except (OSError, ValueError) as error:
        problem = f"the file of --concepts cannot be read ({reason_of(error)}): {name}"
        raise ConfigError(problem, option="concepts") from None
    if isinstance(content, dict) and "datasets" in content:
        problem = f"{name} is a dataset config of sd-scripts"
        way = "write each of its subsets as [[concepts]] with folder, repeats and prompt"
        raise ConfigError(f"{problem}: {way}", option="concepts")
    entries = content.get("concepts") if isinstance(content, dict) else content
    if not isinstance(entries, list) or not entries:
        shape = '[{"folder": "dog", "prompt": "a photo of sks dog"}, ...], or in TOML [[concepts]] tables'
        raise ConfigError(f"{name} must be a list of entries: {shape}", option="concepts")
    beside = [key for key in content if key != "concepts"] if isinstance(content, dict) else []
    if beside:
        problem = f"{name} has the key {printable(beside[0])!r} beside its entries, where no key is read"
        raise ConfigError(f"{problem}: move it into each entry, or remove it", option="concepts")
    return entries


def from_entry(entry, base: Path, config: TrainConfig) -> list[Concept]:
    """The concepts of one entry; its paths are relative to `base`. Raises ConfigError without the place."""
    if not isinstance(entry, dict):
        raise ConfigError(f"it is {kind_of(entry)}, not an object with a folder")
    if "caption_strategy" in entry or "cache_dir_vae" in entry:
        way = "write its instance_data_dir as folder and its instance_prompt as prompt"
        raise ConfigError(f"it is a dataset of SimpleTuner, whose keys are others: {way}")
    if "is_reg" in entry:
        way = "give its folder as class_folder, beside class_prompt, in the entry of the images it is for"
        raise ConfigError(f"it has is_reg, and class images have no entry of their own: {way}")
    if "path" in entry and ("__version" in entry or "include_subdirectories" in entry):
        way = "write its path as folder and its prompt source as captions or prompt"
        raise ConfigError(f"it is a concept of OneTrainer, whose keys are others: {way}")
    for key in entry:
        if key not in KEYS:
            ours = next((own for own, names in ELSEWHERE.items() if key in names), None)
            hint = f"; {ours!r} is its name here" if ours else did_you_mean(key, KEYS)
            raise ConfigError(f"unknown key {key!r}{hint or '; the keys are ' + ', '.join(KEYS)}")
    for key in (FOLDER, CLASS_FOLDER, MASK_FOLDER, "prompt", "class_prompt"):
        if key in entry and not (isinstance(entry[key], str) and entry[key].strip()):
            raise ConfigError(f"{key} is {entry[key]!r}; it must be text")
    if FOLDER not in entry:
        raise ConfigError("it has no folder")
    folder = path_in(base, entry[FOLDER])
    if not folder.is_dir():
        raise ConfigError(f"its folder {printable(folder)} is not a folder")
    of_class = [key for key in CLASS_KEYS if key in entry]
    if of_class and not config.with_prior_preservation:
        raise ConfigError(f"it has {of_class[0]}, which needs --with_prior_preservation")
    has_class_prompt = "class_prompt" in entry or config.class_prompt
    if CLASS_FOLDER in entry and not has_class_prompt and not numbered(path_in(base, entry[CLASS_FOLDER])):
        raise ConfigError("it has class_folder without class_prompt, the prompt of these images")
    if "class_prompt" in entry and not (CLASS_FOLDER in entry or config.class_data_dir):
        raise ConfigError("it has class_prompt without class_folder")
    if MASK_FOLDER in entry and not config.masked_loss:
        raise ConfigError(f"it has {MASK_FOLDER}, which needs --masked_loss")
    values = {KEYS[key]: value for key, value in entry.items() if key != MASK_FOLDER}
    if "keep_tokens" in entry:
        values = {"shuffle_captions": True} | values
    from_dict(TrainConfig, values)  # for the types of the values
    given = {KEYS[key]: value for key, value in entry.items() if key not in (FOLDER, "repeats")}
    given["concepts"] = None
    if CLASS_FOLDER in entry:
        given["class_data_dir"] = str(path_in(base, entry[CLASS_FOLDER]))
    if MASK_FOLDER in entry:
        given["mask_dir"] = str(path_in(base, entry[MASK_FOLDER]))
        if not Path(given["mask_dir"]).is_dir():
            raise ConfigError(f"its {MASK_FOLDER} {printable(given['mask_dir'])} is not a folder")
    class_folder = given.get("class_data_dir", config.class_data_dir)
    given["with_prior_preservation"] = config.with_prior_preservation and class_folder is not None
    own = dataclasses.replace(config, **given)
    return in_folder(folder, own, entry.get("repeats", 1))


def path_in(base: Path, text: str) -> Path:
    """A path of the file, relative to its folder. Raises ConfigError where it cannot be one."""
    if "\0" in text:
        raise ConfigError("a path has a NUL character")
    return base / in_home(text)


def image_folders(config: TrainConfig) -> list[Path]:
    """The folders that images are read from, those of class images and held-out images included."""
    found = []
    for concept in folder_concepts(config):
        found.append(concept.folder.parent if concept.numbered else concept.folder)
        if concept.config.with_prior_preservation and concept.config.class_data_dir:
            found.append(Path(concept.config.class_data_dir))
    if config.validation_dir:
        found.append(Path(config.validation_dir))
    return list(dict.fromkeys(found))
