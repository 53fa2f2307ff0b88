"""Text that a base model writes itself, as the data of the task `pairs`.

    python benchmarks/self_generated.py --base BASE --begin "Once upon a time" --target DIR

Streams that should draft for a model as it is learn most from what that model says. The base
samples stories after the given words, their beginnings become prompts, and the base continues
each prompt greedily. Writes train.jsonl, validation.jsonl and test.jsonl; no prompt occurs twice.
"""

import argparse
import json
import random
from pathlib import Path

import ssjax
from ssjax.files.writing import write_atomic

SPLITS = {"train": 0.9, "validation": 0.05, "test": 0.05}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--begin", action="append", required=True, help="words to begin with")
    parser.add_argument("--target", required=True)
    parser.add_argument("--stories", type=int, default=3000)
    parser.add_argument("--max_new_tokens", type=int, default=96)
    parser.add_argument("--batch_size", type=int, default=50)
    arguments = parser.parse_args()
    run = ssjax.load(arguments.base)
    settings = {"raw": True, "batch_size": arguments.batch_size}
    rng = random.Random(0)

    begins = [arguments.begin[i % len(arguments.begin)] for i in range(arguments.stories)]
    stories = run.generate(begins, temperature=1.0, max_new_tokens=64, seed=1, **settings)
    prompts = []
    for begin, story in zip(begins, stories, strict=True):
        text = begin + run.tokenizer.decode_continuation(story.completion.tokens)
        words = text.split(" ")
        prompts.append(" ".join(words[: rng.randint(len(begin.split(" ")), 20)]))
    prompts = sorted(set(prompts))
    rng.shuffle(prompts)

    answers = run.generate(prompts, max_new_tokens=arguments.max_new_tokens, **settings)
    pairs = [
        {"prompt": a.prompt, "response": run.tokenizer.decode_continuation(a.completion.tokens)}
        for a in answers
    ]
    pairs = [pair for pair in pairs if pair["response"].strip()]
    start = 0.0
    for split, share in SPLITS.items():
        first, start = round(start * len(pairs)), start + share
        own = pairs[first : round(start * len(pairs))]
        lines = [json.dumps(pair, ensure_ascii=False) for pair in own]
        write_atomic(Path(arguments.target) / f"{split}.jsonl", "\n".join(lines) + "\n")
        print(f"{split}: {len(lines)} pairs")


if __name__ == "__main__":
    main()
