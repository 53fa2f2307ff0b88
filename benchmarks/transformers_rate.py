"""Plain greedy decoding by `transformers` beside ours: the same weights, prompts and machine.

    python -m ssjax.export --workdir RUN --format hf --target DIR
    python benchmarks/transformers_rate.py --workdir RUN --exported DIR --num_prompts 40 --json OUT

Float32, batch size 1, prompt by prompt in turn, after one prompt that is not counted. Ours is plain
decoding, and the way of the run with its calibration where it has one. Prompts are ids, so no
tokenizer takes part; seconds are of whole requests.
"""

import argparse
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import ssjax
from ssjax.evaluation.prompts import of_split
from ssjax.files.reading import to_json
from ssjax.files.writing import write_atomic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--exported", required=True, help="the same model, exported as hf")
    parser.add_argument("--num_prompts", type=int, default=40)
    parser.add_argument("--json", help="also write the result to this file")
    arguments = parser.parse_args()
    run = ssjax.load(arguments.workdir)
    model = AutoModelForCausalLM.from_pretrained(arguments.exported, dtype=torch.float32).eval()
    limit, eos = run.config.decode.max_new_tokens, list(run.decoder.eos_ids)

    def theirs(ids):
        return tuple(greedy(model, ids, limit, eos))

    def ours(ids, **changes):
        [answer] = run.generate([ids], batch_size=1, temperature=0.0, **changes)
        return answer.completion.tokens

    ways = {
        "transformers": theirs,
        "ssjax, plain": lambda ids: ours(ids, drafter="plain"),
        "ssjax, as the run drafts": ours,
    }
    prompts = [list(ids) for ids in of_split(run, "test", arguments.num_prompts + 1).ids]
    seconds, tokens = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0)
    same = 0
    for number, ids in enumerate(prompts):
        outputs = {}
        for name, generate in ways.items():
            began = time.perf_counter()
            outputs[name] = generate(ids)
            if number:
                seconds[name] += time.perf_counter() - began
                tokens[name] += len(outputs[name])
        same += bool(number) and len(set(outputs.values())) == 1
    result = {
        "workdir": arguments.workdir,
        "parameters": run.decoder.num_parameters,
        "prompts": len(prompts) - 1,
        "outputs_equal": same,
        "threads": torch.get_num_threads(),
        "tokens_per_second": {name: tokens[name] / seconds[name] for name in ways},
    }
    for name, rate in result["tokens_per_second"].items():
        print(f"{name:26s} {rate:7.1f} tokens a second")
    print(f"{same} of {len(prompts) - 1} outputs are equal in all three")
    if arguments.json:
        write_atomic(Path(arguments.json), to_json(result))


def greedy(model, ids: list[int], max_new_tokens: int, eos_ids: list[int]) -> list[int]:
    """The new tokens of a model of `transformers`, the end included."""
    inputs = torch.tensor([ids])
    with torch.inference_mode():
        output = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=eos_ids,
            pad_token_id=eos_ids[0],
        )
    return output[0, len(ids) :].tolist()


if __name__ == "__main__":
    main()
