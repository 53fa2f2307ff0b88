"""A random model with streams that answers chats, opened for decoding."""

import dataclasses

import jax
import oracles
import small_tokenizers

from ssjax.config import Config, DataConfig, DecodeConfig, StreamsConfig
from ssjax.data.tokenizers.tokenizer import tokenizer_from_files
from ssjax.models.transformer import Transformer, init_params
from ssjax.run import Run, open_run
from ssjax.weights.load import Trained


def open_chat_run(directory, **decode) -> Run:
    """decode: settings of `DecodeConfig`."""
    tokenizer = tokenizer_from_files(small_tokenizers.byte_level(), "tests")
    model = dataclasses.replace(oracles.SMALL, vocab_size=tokenizer.vocab_size)
    config = Config(
        model=model,
        streams=StreamsConfig(num_streams=2, num_stream_layers=1),
        data=DataConfig(task="chat"),
        decode=DecodeConfig(num_nodes=4, max_new_tokens=24, **decode),
    )
    params = jax.jit(lambda: init_params(Transformer(model, config.streams, scan=True), 0))()
    return open_run(Trained(directory, 5, config, tokenizer, params, {}, None))
