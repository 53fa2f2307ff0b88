"""Rewrites tests/golden/families from torch and transformers.

python tests/update_family_goldens.py

The parameter counts of the models in ssjax/weights/published are written too.
"""

import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "families"
MIN_MARGIN = 2e-3  # of greedy decoding: far above the noise of float32
NOISE = 5e-5  # logits that moved less than this, on another machine, stay as they are


def write_golden(tiny, directory: Path) -> None:
    """A model directory as published ones are, and what transformers computes with it."""
    import tiny_models
    import torch_models

    seed = tiny.seeds[0]
    model = torch_models.build(tiny, seed)
    rows = tiny_models.random_ids(tiny, seed, tiny_models.ROW_LENGTHS)
    prompts = tiny_models.random_ids(tiny, seed, tiny_models.PROMPT_LENGTHS)
    greedy, margins = zip(*(torch_models.continue_greedily(model, p) for p in prompts), strict=True)
    assert min(margins) > MIN_MARGIN, f"{tiny.name}: choose another seed, {margins}"
    logits = np.concatenate([torch_models.run(model, row) for row in rows])
    if (directory / "logits.npy").is_file():
        before = np.load(directory / "logits.npy")
        if before.shape == logits.shape and np.abs(before - logits).max() < NOISE:
            logits = before
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.iterdir():
        old.unlink()
    (directory / "config.json").write_text(_json(tiny.config_json))
    (directory / "config_v5.json").write_text(_json(torch_models.config_v5(model)))
    write_weights(tiny, model, directory)
    np.save(directory / "logits.npy", logits)
    ids = {"rows": rows, "prompts": prompts, "greedy": greedy}
    lines = [f'  "{key}": {json.dumps(value)}' for key, value in ids.items()]
    (directory / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def write_weights(tiny, model, directory: Path) -> None:
    """The weights in bfloat16, named as in published files."""
    import torch
    import torch_models
    from safetensors.torch import save_file

    tensors = torch_models.tensors(model)
    if tiny.tied_head:
        tensors["lm_head.weight"] = model.get_input_embeddings().weight.detach().clone()
    tensors = {name.removeprefix(tiny.strip): tensor for name, tensor in tensors.items()}
    tensors |= {name: torch.tensor(values) for name, values in tiny.extra}
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    count = tiny.num_files
    files = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    files = files if count > 1 else ["model.safetensors"]
    file_of = {name: files[i * count // len(tensors)] for i, name in enumerate(sorted(tensors))}
    for file in files:
        own = {name: tensor for name, tensor in tensors.items() if file_of[name] == file}
        save_file(own, directory / file, metadata={"format": "pt"})
        (directory / file).chmod(0o644)  # save_file leaves it to its owner
    if count > 1:
        index = {"metadata": {}, "weight_map": file_of}
        (directory / "model.safetensors.index.json").write_text(_json(index))


def write_counts() -> None:
    """The number of parameters of every model whose shape is part of the package."""
    import torch_models

    from ssjax.weights import published

    counts = {id: torch_models.count_parameters(published.find(id)) for id in published.names()}
    (GOLDEN / "parameter_counts.json").write_text(_json(counts))


def _json(values) -> str:
    return json.dumps(values, indent=2) + "\n"


def main() -> None:
    import tiny_models

    for tiny in tiny_models.TINY_MODELS:
        write_golden(tiny, GOLDEN / tiny.name)
    write_counts()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    main()
