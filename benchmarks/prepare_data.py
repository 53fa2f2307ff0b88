"""How long it takes to prepare records and to measure them, and the start after that.

    python benchmarks/prepare_data.py --records 200000 --processes 1,2

Records are synthetic pairs of some 60 and 20 words, in eight JSON lines files packed by gzip; the
tokenizer is trained on them. Prints one line of JSON.
"""

import argparse
import dataclasses
import gzip
import json
import random
import tempfile
import time
from pathlib import Path

from ssjax.config import Config, DataConfig
from ssjax.data import builders
from ssjax.data.choice import data_digests, open_split
from ssjax.data.lengths import lengths_of
from ssjax.data.tasks import get_task
from ssjax.data.tokenizers.tokenizer import train_tokenizer

_SHARDS = 8
_TRAINED_ON = 2000  # records, for the tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--processes", default="1,2", help="numbers of processes that measure")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "files"
        tokenizer = _write(path, arguments.records)
        config = dataclasses.replace(
            Config(),
            data=DataConfig(
                task="pairs",
                path=str(path),
                prepared_dir=f"{directory}/prepared",
                validation_share=0.01,
                test_share=0.01,
            ),
        )
        task = get_task("pairs")
        prepared = _seconds(lambda: open_split(config, "train"))
        source = open_split(config, "train")
        measured = {}
        for number in map(int, arguments.processes.split(",")):
            for file in Path(directory).glob("prepared/*/lengths/*"):
                file.unlink()
            measured[number] = _seconds(
                lambda number=number: lengths_of(source, task, tokenizer, num_processes=number)
            )
        builders._found_whole.cache_clear()  # as in a new process

        def second_start():
            data_digests(config)
            lengths_of(open_split(config, "train"), task, tokenizer)

        result = {
            "records": arguments.records,
            "prepared_records_per_second": round(arguments.records / prepared),
            "measured_records_per_second": {
                number: round(len(source) / seconds) for number, seconds in measured.items()
            },
            "second_start_seconds": round(_seconds(second_start), 2),
        }
    print(json.dumps(result))


def _write(path: Path, num_records: int):
    """Writes the files; the tokenizer of their texts."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 9))) for _ in range(5000)]
    texts: list[str] = []
    path.mkdir()
    for shard in range(_SHARDS):
        name = f"train-{shard:05d}-of-{_SHARDS:05d}.jsonl.gz"
        with gzip.open(path / name, "wt", compresslevel=1) as file:
            for _ in range(num_records // _SHARDS):
                prompt = " ".join(draw.choices(words, k=draw.randint(20, 100)))
                response = " " + " ".join(draw.choices(words, k=draw.randint(5, 35)))
                file.write(json.dumps({"prompt": prompt, "response": response}) + "\n")
                if len(texts) < _TRAINED_ON:
                    texts.append(prompt)
    return train_tokenizer(texts, 2000, symbols=())


def _seconds(work) -> float:
    since = time.perf_counter()
    work()
    return time.perf_counter() - since


if __name__ == "__main__":
    main()
