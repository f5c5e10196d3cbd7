"""The tokenizers of the embedded base: CLIP's byte-level BPE, trained on its captions."""

import json
from pathlib import Path

import numpy as np
from captions import COLORS, PLAIN_PREFIXES, RARE, SCENES, TINTS
from composer import Composer
from models import POSITIONS
from objects import HELD_OUT
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"


def make_tokenizers(folder: Path, composer: Composer) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """Both tokenizers from the files in this folder, which are made where they are absent.

    The first pads with the end token, the second with "!", as SDXL's do.
    """
    if not (folder / "vocab.json").exists():
        write_vocabulary(folder, train_bpe(corpus(composer)))
    files = (str(folder / "vocab.json"), str(folder / "merges.txt"))
    common = dict(unk_token=END, bos_token=START, eos_token=END, model_max_length=POSITIONS)
    return CLIPTokenizer(*files, pad_token=END, **common), CLIPTokenizer(*files, pad_token="!", **common)


def corpus(composer: Composer) -> list[str]:
    """20,000 captions, and the words that should be one token each."""
    rng = np.random.default_rng(0)
    texts = [composer.describe(composer.plan(rng), rng) for _ in range(20000)]
    words = [RARE, *HELD_OUT, *COLORS, *SCENES, *PLAIN_PREFIXES, *TINTS]
    words.append("sticker toy wearing with of in the style")
    return texts + [" ".join(words)] * 50


def train_bpe(texts: list[str]) -> list[str]:
    """The merges, in order: pairs of tokens separated by a space."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix=WORD_END, unk_token=END))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    split = pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", invert=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    merges = json.loads(bpe.to_str())["model"]["merges"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def write_vocabulary(folder: Path, merges: list[str]) -> None:
    """vocab.json and merges.txt as CLIP's tokenizer reads them; "!" has the id 0."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["!"]
    tokens += [letter for letter in alphabet if letter != "!"]
    tokens += [letter + WORD_END for letter in alphabet]
    tokens += [merge.replace(" ", "") for merge in merges]
    tokens += [START, END]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
