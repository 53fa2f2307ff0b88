"""Shows records as training sees them: text, token ids and loss mask side by side.

    python -m ssjax.show --config experiments/dialogsum.py
    python -m ssjax.show --config FILE:VARIANT --split validation --num_records 5 --json OUT

The rows are those of the batches: of the split train from the first batch of training on, shuffled,
cut and packed as the config says; of the others in the order of the file, as for the validation
loss. Under "loss", x is a token that is learned, . one that is only read.

Exit status 2 and a line on stderr, below the table, if a loss mask is all ones, if nothing is
learned, or if a target lacks its end of sequence.
"""

import itertools

from absl import flags

from ssjax import messages
from ssjax.cli import options, start
from ssjax.data import builders
from ssjax.data.choice import choose_tokenizer
from ssjax.data.preview import batches, check, sequences, show, values
from ssjax.files import places
from ssjax.weights.base import open_base

_EXPERIMENT = options.define_experiment_flags()
_SPLIT = flags.DEFINE_enum("split", "train", list(builders.SPLITS), "Whose records.")
_NUM_RECORDS = options.define_count("num_records", 3, "How many.")
_JSON = options.define_output("json", "Also write the records to this file.")


def main() -> int:
    """Shows the records of the command line; returns the exit code."""
    config = _EXPERIMENT.read()
    split = _SPLIT.value
    base = config.model.pretrained
    directory = open_base(base, config.model.dtype).directory if base else None
    tokenizer = choose_tokenizer(places.of(config.workdir), config, directory, messages.say)
    rows = sequences(batches(config, tokenizer, split, messages.say))
    shown = list(itertools.islice(rows, _NUM_RECORDS.value))
    options.write_json(_JSON.value, [values(sequence, tokenizer) for sequence in shown])
    for number, sequence in enumerate(shown, start=1):
        show(
            f"{config.data.task} {split}, record {number} (row {sequence.row})", sequence, tokenizer
        )
    for sequence in shown:
        check(sequence, tokenizer, config.data, split)
    return 0


if __name__ == "__main__":
    start.run(main)
