"""Published GGUF files against transformers' own reader of them.

SSJAX_GGUF=FILE.gguf[:FILE.gguf ...] pytest -m stress tests/families/test_real_gguf.py
"""

import json
import os
from pathlib import Path

import numpy as np
import oracles
import pytest

from ssjax.data.tokenizers.tokenizer import open_tokenizer
from ssjax.decoding.decoder import Decoder
from ssjax.decoding.drafters import PlainDrafter
from ssjax.weights.load import load_trained, make_model

FILES = [name for name in os.environ.get("SSJAX_GGUF", "").split(":") if name]
NEW_TOKENS = 64
TOLERANCE = 1e-3
PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a little",
    "def fibonacci(n):\n",
    "name[The Eagle], food[French], area[riverside]",
)

pytestmark = [
    pytest.mark.stress,
    pytest.mark.skipif(not FILES, reason="SSJAX_GGUF names no GGUF files"),
    pytest.mark.filterwarnings("ignore"),  # of transformers
]


@pytest.fixture(scope="module", params=FILES, ids=lambda name: Path(name).stem)
def file(request):
    for package in ("gguf", "torch", "transformers", "accelerate"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    return Path(request.param)


def test_token_ids(file, shared):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    ours = open_tokenizer(file)
    golden = json.loads(shared("tokenizers", "golden_encodings.json").read_text())["tokenizers"]
    texts = {case["text"] for entry in golden.values() for case in entry["cases"]}
    assert len(texts) > 10
    for text in texts:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False), text
        assert ours.decode(ids) == text


def test_logits_and_greedy_ids(file):
    """Logits of whole answers, and that each id of ours is the one that they give."""
    import torch
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()
    trained = load_trained(file)
    tokenizer, model = trained.tokenizer, make_model(trained.config, trained.tokenizer)
    prompts = [[*tokenizer.prefix_ids, *tokenizer.encode(prompt)] for prompt in PROMPTS]
    decoder = Decoder(model, trained.params, eos_ids=[], pad_id=0, prompt_buckets=(32,))
    completions = oracles.generate(decoder, prompts, PlainDrafter(), max_new_tokens=NEW_TOKENS)
    rows = [[*p, *c.tokens] for p, c in zip(prompts, completions, strict=True)]
    width = max(map(len, rows))
    padded = np.array([row + [0] * (width - len(row)) for row in rows])
    hidden = oracles.run_model(model, trained.params, padded).hidden
    for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        with torch.no_grad():
            expected = reference(torch.tensor([row])).logits[0].numpy()
        found = oracles.logits_of(model, trained.params, hidden[i : i + 1, : len(row)])[0]
        found = found[:, : expected.shape[1]]
        print(f"{file.stem}, prompt {i}: largest difference {np.abs(found - expected).max():.1e}")
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
        greedy = expected[len(prompt) - 1 : -1].argmax(-1).tolist()
        assert greedy == row[len(prompt) :] and len(greedy) == NEW_TOKENS
