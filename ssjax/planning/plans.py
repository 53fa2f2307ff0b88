"""Compiles the programs of a run for a mesh and says what they need and cost, per device."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from ssjax.config import Config
from ssjax.decoding import decoder
from ssjax.decoding.drafters import make_drafter
from ssjax.decoding.row_settings import RowSettings, settings_of
from ssjax.decoding.sampling import make_sampling
from ssjax.decoding.state import DecodeSpec, DecodeState, Rows
from ssjax.models.axes import placed
from ssjax.models.head import with_draft_head
from ssjax.models.int8 import shapes_in_eight_bits
from ssjax.models.lora import merged_adaptation
from ssjax.models.parameters import Params
from ssjax.models.transformer import Transformer, abstract_params
from ssjax.parallel import partitioning
from ssjax.parallel.program_cost import count_flops, peak_memory
from ssjax.planning.compiled_cost import program_cost
from ssjax.planning.out_of_memory import NoRoom, no_room
from ssjax.planning.predicted_time import PredictedTime, predicted_time
from ssjax.planning.program_text import read_program
from ssjax.planning.topologies import Chip
from ssjax.training.programs import make_train_programs

SERVED_EOS_IDS = 8  # of a request, that a planned server looks for


@dataclasses.dataclass(frozen=True)
class ProgramPlan:
    """One compiled program. Bytes and operations are those of one device."""

    fits: bool
    inputs: dict[str, int]  # bytes by what they are: parameters, optimizer, cache, ...
    temporary: int  # bytes that the program needs besides
    peak: int  # bytes of memory, at once
    flops: float  # of matrix products; of a decode loop: of one pass
    traffic: int  # bytes read and written; of a decode loop: of one pass
    collectives: dict[str, tuple[int, int]]  # by kind: number and bytes, as traffic
    error: str = ""  # the compiler's words, where it gave up
    predicted: PredictedTime | None = None  # None: not of a TPU, or it was not compiled

    def seconds(self, chip: Chip) -> dict[str, float]:
        """A lower bound of the time of each resource, by its published peak."""
        moved = sum(size for _, size in self.collectives.values())
        return {
            "compute": self.flops / chip.flops,
            "memory": self.traffic / chip.bandwidth,
            "interconnect": moved / chip.interconnect,
        }


def plan_training(config: Config, model: Transformer, mesh: Mesh, hbm: int) -> ProgramPlan:
    """Compiles the train step that `ssjax.train` would run.

    Args:
      config: resolved, checked for the mesh.
      model: of the config.
      mesh: of devices that need not exist.
      hbm: bytes of a device; 0: unknown.
    """
    programs = make_train_programs(config, model, mesh)
    inputs = {
        "trained parameters": _bytes(programs.state.params),
        "frozen parameters": _bytes(programs.frozen),
        "optimizer": _bytes(programs.state.opt_state),
        "batch": _bytes(programs.batch),
    }
    arguments = (programs.state, programs.frozen, programs.batch)
    with jax.set_mesh(mesh):
        flops = count_flops(programs.countable, *arguments) / mesh.size
        return _compile(programs.train, arguments, inputs, flops, hbm, main_loop=False)


def plan_decoding(
    config: Config,
    model: Transformer,
    mesh: Mesh,
    hbm: int,
    *,
    int8: bool = False,
    serving: bool = False,
) -> ProgramPlan:
    """Compiles the decode loop with the config's drafter, as `ssjax.evaluate` would run it.

    Args:
      config, model, mesh, hbm: as in `plan_training`.
      int8: the large matrices are held in eight bits.
      serving: as `ssjax.serve` would run it: each row is drawn in its own way, with the
        log-probabilities of its tokens.
    """
    decode, data = config.decode, config.data
    drafter = make_drafter(decode, config.streams)
    model, params = _held_by_decoders(config, model, mesh, int8)
    spec = _spec(config, data.max_prompt_length + decode.max_new_tokens)
    rows = _rows(mesh, decode.batch_size, data.max_prompt_length)
    if serving:
        spec = dataclasses.replace(spec, log_probs=True)
        rows = rows.replace(settings=_settings(mesh, decode.batch_size, spec.sampling))
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(
            lambda params, rows: decoder.loop.prefill(model, params, drafter, spec, rows),
            params,
            rows,
        )
        state = _placed_state(shapes, mesh)
        flops = count_flops(
            lambda params, state: decoder.loop.decode_step(model, params, drafter, spec, state),
            params,
            state,
        )
        inputs = {"parameters": _bytes(params), "cache": _bytes(state.cache)}
        arguments = (model, params, drafter, spec, state)
        flops /= mesh.size
        return _compile(decoder.decode_program, arguments, inputs, flops, hbm, main_loop=True)


def plan_prefill(
    config: Config,
    model: Transformer,
    mesh: Mesh,
    hbm: int,
    prompt_length: int,
    *,
    int8: bool = False,
) -> ProgramPlan:
    """Compiles the reading of prompts, up to the first draft of the config's drafter.

    Args:
      config, model, mesh, hbm: as in `plan_training`.
      prompt_length: tokens that every row is padded to.
      int8: as in `plan_decoding`.
    """
    drafter = make_drafter(config.decode, config.streams)
    model, params = _held_by_decoders(config, model, mesh, int8)
    spec = _spec(config, prompt_length + 2 + drafter.max_depth)  # as `Decoder` gives it
    rows = _rows(mesh, config.decode.batch_size, prompt_length)
    with jax.set_mesh(mesh):
        arguments = (model, params, drafter, spec, rows)
        flops = count_flops(
            lambda params, rows: decoder.loop.prefill(model, params, drafter, spec, rows),
            params,
            rows,
        )
        inputs = {"parameters": _bytes(params)}
        flops /= mesh.size
        return _compile(decoder.prefill_program, arguments, inputs, flops, hbm, main_loop=False)


def _held_by_decoders(config, model, mesh, int8) -> tuple[Transformer, Params]:
    """The model and the shapes of its parameters in the form in which `Decoder` has them."""
    # With the adapters of main rows folded into the weights.
    model = model.clone(adaptation=merged_adaptation(config.adaptation))
    model = model.clone(scan=True, execution=decoder.decoding_execution(mesh, scan=True))
    dtype = jnp.dtype(config.model.dtype)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), abstract_params(model))
    params = jax.eval_shape(lambda x: with_draft_head(x, model.config, model.streams), params)
    params = placed(params, config.model, mesh)
    return model, shapes_in_eight_bits(params) if int8 else params


def _spec(config, num_slots) -> DecodeSpec:
    """What a decoder would be told, with room for at least so many tokens a row."""
    multiple = decoder.CAPACITY_MULTIPLE
    return DecodeSpec(
        capacity=-(-num_slots // multiple) * multiple,
        eos_ids=(0,),
        pad_id=0,
        sampling=make_sampling(config.decode),
        deferred=config.decode.deferred,
        accept=config.decode.accept,
    )


def _rows(mesh, batch_size, prompt_length) -> Rows:
    """Shapes of prompts, divided over the mesh."""
    sharding = partitioning.batch_sharding(mesh, batch_size)

    def per_row(*shape, dtype=jnp.int32):
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=sharding)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch_size))
    return Rows(per_row(prompt_length), per_row(), per_row(), per_row(dtype=keys.dtype))


def _settings(mesh, batch_size, sampling) -> RowSettings:
    """Shapes of the settings of rows that are drawn in their own ways."""
    row = settings_of(sampling, (0,), SERVED_EOS_IDS, drafting=True)
    sharding = partitioning.batch_sharding(mesh, batch_size)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype, sharding=sharding), row
    )


def _placed_state(shapes: DecodeState, mesh: Mesh) -> DecodeState:
    """The shapes of a decode state with the shardings that a prefill leaves it in."""

    def place(leaf, *axes):
        spec = partitioning.spec(axes, leaf.shape, mesh.shape)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    def row(leaf):
        return place(leaf, "batch", *["length"] * (leaf.ndim - 1))

    def cached(leaf):
        return place(leaf, "layers", "batch", "kv_heads", "length", "head_dim")

    placed = jax.tree.map(row, shapes.replace(cache=None))
    return placed.replace(cache=jax.tree.map(cached, shapes.cache))


def advice(plan: ProgramPlan, config: Config, hbm: int) -> str:
    """What to change where a program does not fit."""
    held = sum(plan.inputs.values())
    if held > 0.6 * hbm:
        return (
            "weights and what belongs to them take most of it: raise mesh.fsdp or mesh.tensor, "
            "or take more chips"
        )
    if config.train.remat != "full":
        return "activations take most of it: train.remat=full"
    return "activations take most of it: raise train.accumulation, or mesh.tensor"


def _compile(
    program: Callable, arguments, inputs, flops: float, hbm: int, main_loop: bool
) -> ProgramPlan:
    try:
        compiled = program.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if (room := no_room(str(error))) is None:
            raise
        return _without_room(room, inputs, flops)
    memory = compiled.memory_analysis()
    peak = peak_memory(compiled)
    read = read_program(compiled.as_text())
    cost, predicted = program_cost(read, main_loop), predicted_time(read, main_loop)
    return ProgramPlan(
        fits=not hbm or peak <= hbm,
        inputs=inputs,
        temporary=memory.temp_size_in_bytes,
        peak=peak,
        flops=flops,
        traffic=cost.traffic,
        collectives=dict(cost.collectives),
        predicted=predicted if predicted.parts else None,
    )


def _without_room(room: NoRoom, inputs: dict[str, int], flops: float) -> ProgramPlan:
    """The plan of a program that the compiler gave up."""
    held = sum(inputs.values())
    peak = room.needed + (held if room.only_temporary else 0)
    return ProgramPlan(
        fits=False,
        inputs=inputs,
        temporary=max(peak - held, 0),
        peak=peak,
        flops=flops,
        traffic=0,
        collectives={},
        error=room.words,
    )


def _bytes(tree) -> int:
    """Bytes of abstract arrays on one device."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        itemsize = 8 if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize
        total += math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.int64(itemsize)
    return int(total)
