"""Tokenizers of each kind, made in memory: mappings of file names to contents."""

import functools
import json
import os
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from ssjax.data.tokenizers.tokenizer import Tokenizer, tokenizer_from_files, train_tokenizer

TEXTS = [
    f"#Person{1 + i % 2}#: {name} wants {item} on {day}.\n#Person2#: Why {item}, {name}?"
    for i, name in enumerate(("Anna", "Bob", "Carla", "Dan"))
    for item in ("a red coat", "two tickets", "the new car", "some green tea")
    for day in ("Monday", "Tuesday", "Friday")
]

# Characters of 1 to 4 bytes, joined and combining ones, spaces in every place, strings that spell
# special tokens or bytes.
NASTY = [
    "",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    " a",
    "a ",
    "  a  b  ",
    "a\nb",
    "\n a\n",
    "a\r\nb\rc",
    "\U0001f389\U0001f469\u200d\U0001f467 e\u0301 \u00e9",
    "\x00\x7f",
    "\ufeffa",
    "\u00a0c\u3000d",
    "<s>",
    "</s><pad><unk>",
    "<0x0A>",
    "日本語テキスト",
    "#Person1#:#Person2#",
    "##Person1##",
    "\ufb01 \u2460 \u00bd",
    "a\tb",
    "<|im_end|>",
    "\ufffd",
]

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def as_json(value) -> bytes:
    return json.dumps(value).encode()


@functools.cache
def sentencepiece() -> dict[str, bytes]:
    """As `train_tokenizer` makes it: 360 pieces, pad 0, unk 1, bos 2, eos 3."""
    return train_tokenizer(TEXTS, 360, symbols=("#Person1#", "#Person2#")).files


def sentencepiece_chat() -> dict[str, bytes]:
    """With two special tokens after the pieces, as in a directory of Hugging Face."""
    added = {
        str(360 + i): {"content": token, "special": True} for i, token in enumerate(SPECIAL[1:])
    }
    config = {
        "added_tokens_decoder": added,
        "eos_token": "<|im_end|>",
        "bos_token": "<s>",
        "legacy": False,
        "chat_template": CHATML,
    }
    return sentencepiece() | {"tokenizer_config.json": as_json(config)}


@functools.cache
def _byte_level() -> dict:
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    library.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return json.loads(library.to_str())


def byte_level(**description) -> dict[str, bytes]:
    """Like Qwen's: a tokenizer.json of bytes, no bos; description: changes to it."""
    return {
        "tokenizer.json": as_json(_byte_level() | description),
        "tokenizer_config.json": as_json({"eos_token": "<|im_end|>", "chat_template": CHATML}),
    }


def merges(*more_tokens: str) -> dict[str, bytes]:
    """Like GPT-2's: the same vocabulary without <|im_...|>, as vocab.json and merges.txt."""
    model = _byte_level()["model"]
    tokens = [token for token in model["vocab"] if "im_" not in token] + list(more_tokens)
    rules = "".join(f"{left} {right}\n" for left, right in model["merges"])
    return {
        "vocab.json": as_json({token: i for i, token in enumerate(tokens)}),
        "merges.txt": f"#version: 0.2\n{rules}".encode(),
    }


def _llama_description(**changes) -> dict:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdeTom"]
    pairs = [("▁", "T"), ("o", "m"), ("▁T", "om"), ("▁", "a")]
    tokens += ["".join(pair) for pair in pairs]
    special = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": True,
        "special": True,
    }
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    description = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": tokens[i], **special} for i in range(3)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [" ".join(pair) for pair in pairs],
        },
    }
    return description | changes


def llama(**description) -> dict[str, bytes]:
    """Like Llama 2's: SentencePiece as a tokenizer.json, and bos in front of a prompt."""
    return {"tokenizer.json": as_json(_llama_description(**description))}


def metaspace() -> dict[str, bytes]:
    """Like Mistral's: the same with the space in front put there by the pre-tokenizer."""
    first = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    return llama(normalizer=None, pre_tokenizer=first)


SMALL = {
    "sentencepiece": sentencepiece,
    "sentencepiece chat": sentencepiece_chat,
    "byte level": byte_level,
    "merges": merges,
    "llama": llama,
    "metaspace": metaspace,
}

# Files of published tokenizers that encode every text without loss, by the name that each is
# opened under.
LOSSLESS = {
    "c4": {"tokenizer.model": "c4_bpe_32k/bpe_32k_c4.model"},
    "gpt2": {"vocab.json": "gpt2/vocab.json", "merges.txt": "gpt2/merges.txt"},
    "llama2": {"tokenizer.json": "llama2/tokenizer.json"},
    "mistral v3": {"tokenizer.model": "mistral/mistral_instruct_tokenizer_240323.model.v3"},
    "phi2": {"tokenizer.json": "phi2/tokenizer.json"},
    "phi3": {
        "tokenizer.json": "phi3_mini/tokenizer.json",
        "tokenizer_config.json": "phi3_mini/tokenizer_config.json",
    },
}


@functools.cache
def small(name: str) -> Tokenizer:
    return tokenizer_from_files(SMALL[name](), name)


def published_path(name: str) -> Path:
    """A file or directory of published tokenizers, beside the data; or a skip."""
    data = os.environ.get("SSJAX_DATA", Path(__file__).parents[2] / "shared" / "data")
    path = Path(data).parent / "tokenizers" / name
    if not path.exists():
        pytest.skip(f"no tokenizers/{name} beside the data: set SSJAX_DATA to a directory with it")
    return path


@functools.cache
def lossless(name: str) -> Tokenizer:
    """One of LOSSLESS, or a skip."""
    files = {as_name: published_path(path) for as_name, path in LOSSLESS[name].items()}
    return tokenizer_from_files({n: path.read_bytes() for n, path in files.items()}, name)


# A post-processor that puts the first token in front of a text.
BOS_FIRST = {
    "type": "Sequence",
    "processors": [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {
                "<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
            },
        },
    ],
}


def hf(model_type="some", **values):
    """The config.json of a model."""
    return as_json({"architectures": ["SomeForCausalLM"], "model_type": model_type, **values})


def config(**values):
    """The files with a tokenizer_config.json of these values."""
    return {"tokenizer_config.json": as_json(values)}


def added(**tokens):
    """The same with added tokens, by id."""
    return config(added_tokens_decoder=tokens)
