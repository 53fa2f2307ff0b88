#!/bin/sh
# SmolLM2-135M on E2E NLG: fine-tuned, asked for its own answers, and given streams that draft them.
#
#   sh experiments/models/e2e_nlg.sh DATA [RUNS]
#
# DATA holds trainset.csv, devset.csv and testset_w_refs.csv. What is made lies in RUNS, by default
# runs/smollm2; given again after it was stopped, it goes on where it was.
set -eu
data=${1:?give the directory of E2E NLG}
runs=${2:-runs/smollm2}
experiment=experiments/e2e_nlg.py:smollm2-135m

# The skill: LoRA on all layers, no streams.
python -m ssjax.train --config $experiment --config.data.path="$data" \
  --config.workdir="$runs/skill" --config.adaptation.mode=shared --config.streams.num_streams=0 \
  --config.streams.draft_vocab_size=0 --config.loss.distillation=0 --config.train.num_steps=120 \
  --config.optimizer.learning_rate=0.001 --config.optimizer.warmup_steps=10
if [ ! -d "$runs/base" ]; then
  python -m ssjax.export --workdir "$runs/skill" --format orbax --target "$runs/base"
fi

# What it says itself, greedy and sampled, to 2,600 prompts.
python -m ssjax.distill --workdir "$runs/base" --config $experiment --config.data.path="$data" \
  --num_records 2600 --target "$runs/own"

# Streams beside it: no bit of its output can change.
python -m ssjax.train --config $experiment --config.data.path="$runs/own" \
  --config.workdir="$runs/streams" --config.model.pretrained="$runs/base" \
  --config.adaptation.mode=lossless --config.adaptation.rank=32 --config.adaptation.alpha=64 \
  --config.loss.main_weight=0 --config.loss.distillation=0 --config.train.num_steps=260 \
  --config.optimizer.learning_rate=0.003 --config.optimizer.warmup_steps=20

python -m ssjax.calibrate --workdir "$runs/streams" --batch_sizes 1 --nodes 3,7,15 --num_prompts 40
python -m ssjax.benchmark --workdir "$runs/streams" --num_prompts 100 \
  --drafters calibrated,streams:num_nodes=15,prompt_lookup:num_nodes=7
