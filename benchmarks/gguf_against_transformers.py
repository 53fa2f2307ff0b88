"""A GGUF file as we read it beside `transformers`' own reader: logits, and greedy tokens.

    python benchmarks/gguf_against_transformers.py --file FILE.gguf --prompts FILE --json OUT

Needs the extras gguf and parity, and `accelerate`, which transformers asks for. Prompts are the
lines of a file, or, where it ends in .jsonl, the first text of each record's `turns`; they are read
as plain text, without a chat template, and both sides are given our ids, which are compared with
those of `transformers`. Float32. Logits are compared at all places of the prompt and of the greedy
tokens of `transformers` after it.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers_rate import greedy

import ssjax
from ssjax.files.reading import to_json
from ssjax.files.writing import write_atomic
from ssjax.models.attention import Causal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--num_prompts", type=int, default=20)
    parser.add_argument("--num_tokens", type=int, default=64)
    parser.add_argument("--json", help="also write the result to this file")
    arguments = parser.parse_args()
    run = ssjax.load(str(arguments.file))
    named = {"gguf_file": arguments.file.name}
    tokenizer = AutoTokenizer.from_pretrained(arguments.file.parent, **named)
    model = AutoModelForCausalLM.from_pretrained(
        arguments.file.parent, dtype=torch.float32, **named
    ).eval()
    decoder = run.decoder

    @jax.jit
    def our_logits(params, ids):
        positions = jnp.arange(ids.shape[1])[None]
        output = decoder.model.apply({"params": params}, ids, positions, Causal())
        return decoder.model.apply({"params": params}, output.hidden, method="logits")

    texts = _texts(arguments.prompts)[: arguments.num_prompts]
    rows = []
    for number, text in enumerate(texts):
        ids = run.encode_prompt(text, raw=True)
        theirs = greedy(model, ids, arguments.num_tokens, list(decoder.eos_ids))
        sampled = {"temperature": 0.0, "max_new_tokens": arguments.num_tokens, "drafter": "plain"}
        [answer] = run.generate([ids], **sampled)
        ours = list(answer.completion.tokens)
        whole = ids + theirs
        # One length for all, so that the model compiles once; what is padded comes after.
        padded = np.zeros((1, -(-len(whole) // 256) * 256), np.int32)
        padded[0, : len(whole)] = whole
        found = np.asarray(our_logits(decoder.params, padded))[0, : len(whole)]
        with torch.inference_mode():
            expected = model(torch.tensor([whole])).logits[0].numpy()
        rows.append(
            {
                "ids_equal": ids == tokenizer(text)["input_ids"],
                "tokens_equal": ours == theirs,
                "largest_logit_difference": float(np.abs(found - expected).max()),
            }
        )
        print(number, rows[-1], flush=True)
    result = {
        "file": arguments.file.name,
        "prompts": len(rows),
        "tokens_each": arguments.num_tokens,
        "ids_equal": sum(row["ids_equal"] for row in rows),
        "tokens_equal": sum(row["tokens_equal"] for row in rows),
        "largest_logit_difference": max(row["largest_logit_difference"] for row in rows),
    }
    print(json.dumps(result, indent=2))
    if arguments.json:
        write_atomic(Path(arguments.json), to_json(result))


def _texts(path: Path) -> list[str]:
    lines = path.read_text().splitlines()
    if path.suffix == ".jsonl":
        return [json.loads(line)["turns"][0] for line in lines if line]
    return [line for line in lines if line]


if __name__ == "__main__":
    main()
