"""`export --format hf` of every family with a tokenizer of its kind, loaded with transformers."""

import dataclasses
import json

import pytest
import tiny_models
import torch_models
from small_tokenizers import as_json, byte_level, llama, merges, metaspace, sentencepiece_chat

from ssjax.run import load
from ssjax.weights.exported import write_hf
from ssjax.weights.load import load_trained

PROMPTS = ["Anna wants", " a red  coat\n", "#Person1#: Why?\n\n", "caf\u00e9 \U0001f389 12"]
CHAT = [{"role": "user", "content": "Why a coat?"}]
NEW_TOKENS = 24


def config(files, **values):
    known = json.loads(files.get("tokenizer_config.json", b"{}"))
    return files | {"tokenizer_config.json": as_json(known | values)}


OPT = config(
    merges("<s>", "<pad>", "</s>", "<unk>"),
    tokenizer_class="GPT2Tokenizer",
    add_bos_token=True,
    bos_token="</s>",
    eos_token="</s>",
    pad_token="<pad>",
)
LLAMA = config(
    llama(), tokenizer_class="LlamaTokenizer", add_bos_token=True, bos_token="<s>", eos_token="</s>"
)
LLAMA |= {"generation_config.json": as_json({"eos_token_id": [2, 258]})}
GEMMA = config(sentencepiece_chat(), tokenizer_class="GemmaTokenizer")
QWEN = config(
    merges("<|im_end|>"),
    tokenizer_class="Qwen2Tokenizer",
    eos_token="<|im_end|>",
    pad_token="<|endoftext|>",
)
TOKENIZERS = {
    "opt": OPT,
    "phi": config(merges(), tokenizer_class="CodeGenTokenizer", eos_token="<|endoftext|>"),
    "llama": LLAMA,
    "mistral": config(metaspace(), tokenizer_class="LlamaTokenizer", add_bos_token=True),
    "phi3": LLAMA,
    "granite": config(merges(), tokenizer_class="GPT2Tokenizer", eos_token="<|endoftext|>"),
    "olmo2": config(merges(), tokenizer_class="GPT2Tokenizer", eos_token="<|endoftext|>"),
    "smollm3": byte_level(),
    "qwen2": byte_level(),
    "qwen3": QWEN,
    "gemma": GEMMA,
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "gpt2": config(merges(), tokenizer_class="GPT2Tokenizer"),
}


def exported(tiny, tmp_path):
    """The family with a larger table: the untouched model exported, and what was exported."""
    values = tiny.config_json | {"vocab_size": 400}
    base, out = tmp_path / "base", tmp_path / "out"
    torch_models.save(torch_models.build(dataclasses.replace(tiny, config_json=values), 3), base)
    for name, content in TOKENIZERS[values["model_type"]].items():
        (base / name).write_bytes(content)
    trained = load_trained(base)
    write_hf(out, trained, "float32")
    return trained.tokenizer, out


def as_list(ids):
    return ids if isinstance(ids, list) else [ids]


def check(tokenizer, out):
    """The ids that transformers reads; returns its tokenizer and model."""
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(out)
    model, _ = torch_models.load(out)
    for text in PROMPTS:
        assert theirs(text).input_ids == [*tokenizer.prefix_ids, *tokenizer.encode(text)]
    if tokenizer.chat_template:
        chat = theirs.apply_chat_template(CHAT, add_generation_prompt=True)
        assert chat["input_ids"] == tokenizer.encode_chat(CHAT, add_generation_prompt=True)
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)
    for said in (model.config, model.generation_config):
        assert as_list(said.eos_token_id) == list(tokenizer.eos_ids)
        assert said.pad_token_id == tokenizer.pad_id
        if tokenizer.prefix_ids:
            assert (said.bos_token_id,) == tokenizer.prefix_ids
    assert not model.generation_config.do_sample
    return theirs, model


@pytest.mark.parametrize("name", ["opt", "llama", "qwen2", "gemma"])
def test_transformers_reads_our_ids(name, tmp_path, transformers):
    check(*exported(tiny_models.find(name), tmp_path))


@pytest.mark.stress
@pytest.mark.parametrize("tiny", tiny_models.TINY_MODELS, ids=lambda tiny: tiny.name)
def test_transformers_writes_our_text(tiny, tmp_path, transformers):
    tokenizer, out = exported(tiny, tmp_path)
    theirs, model = check(tokenizer, out)
    run = load(out)
    for text in PROMPTS:
        ids = theirs(text, return_tensors="pt")
        with torch_models.quiet():
            whole = model.generate(**ids, max_new_tokens=NEW_TOKENS)[0].tolist()
        answer = run.generate([text], raw=True, max_new_tokens=NEW_TOKENS, drafter="plain")[0]
        prompt = [*tokenizer.prefix_ids, *tokenizer.encode(text)]
        assert whole[: len(prompt)] == prompt
        new = list(answer.completion.tokens)
        assert whole[len(prompt) :] == new
        both = [*prompt, *new]
        # Of bytes that are not UTF-8 the library writes more marks than there are.
        if "\ufffd" not in (written := tokenizer.decode(both)):
            assert theirs.decode(both, skip_special_tokens=True) == written
