"""Adapters of many tasks over one base: which there are, and their leaves on the device.

Place 0 of the stack is the base with what it was trained with itself, if anything; the others are
free or hold an adapter. An adapter is read and checked by any thread (`open`); places are given and
taken between two rounds of the engine, by its thread (`add`, `remove`).
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssjax.config import Config, DecodeConfig
from ssjax.data.tasks import task_of_run
from ssjax.data.tokenizers.tokenizer import open_tokenizer, same_tokens
from ssjax.decoding.adapters import AdapterStack
from ssjax.decoding.sampling import Sampling, make_sampling
from ssjax.errors import UserError
from ssjax.messages import say
from ssjax.models import lora
from ssjax.models.parameters import Params, cast, fingerprint, split, unstack_layers
from ssjax.run import Run, open_run
from ssjax.weights import adapter_form
from ssjax.weights.adapter import is_portable, read_addition, read_config
from ssjax.weights.adapter_form import AdapterForm
from ssjax.weights.base import open_base
from ssjax.weights.load import Trained, base_only, make_model

_LONGEST_NAME = 200


class UnknownAdapter(UserError):
    """No adapter of this name is there."""


class AdapterInUse(UserError):
    """Requests that are not finished use it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter that is there. One that is loaded again is another."""

    name: str
    root: str  # what it was read from, without places of the machine
    place: int  # in the stack, above 0
    run: Run  # its task and settings; decodes nothing by itself
    decode: DecodeConfig  # what a request does not say
    has_streams: bool


@dataclasses.dataclass(frozen=True)
class Opened:
    """An adapter that was read and fits, all but its place."""

    name: str
    root: str
    run: Run
    decode: DecodeConfig
    has_streams: bool
    leaves: Params  # NumPy arrays as the stack has them, without its axis


class Adapters:
    """The adapters of a served model.

    Args:
      trained: the base, with its own streams and LoRA in the form, as `on_form` gives it.
      run: of it, not folded.
      form: of all adapters.
      has_streams: whether the base has streams of its own.
      max_adapters: that may be there at once.
      root: directory that clients may load from; None: they may not load.
      changes: settings that go before those of each adapter.

    Attributes:
      run, max_adapters, root: as given.
      base_has_streams: has_streams.
    """

    def __init__(
        self,
        trained: Trained,
        run: Run,
        form: AdapterForm,
        *,
        has_streams: bool,
        max_adapters: int,
        root: Path | None,
        changes: Mapping[str, Any],
    ):
        self.run, self.max_adapters, self.root = run, max_adapters, root
        self.base_has_streams = has_streams
        self._trained, self._form, self._changes = trained, form, dict(changes)
        self._digest = fingerprint(trained.frozen)
        self._model = make_model(trained.config, trained.tokenizer)  # scanned
        self._named: dict[str, Adapter] = {}
        own, base = split(run.decoder.params, lora.is_new)
        self._dtypes = jax.tree.map(lambda x: x.dtype, own)
        with jax.set_mesh(run.decoder.mesh):
            self._base, flags = base, jnp.zeros(1 + max_adapters, bool)
            stacked = jax.tree.map(
                lambda x: jnp.zeros((1 + max_adapters, *x.shape), x.dtype).at[0].set(x), own
            )
        self._stacked, self._flags = stacked, flags.at[0].set(has_streams)
        leaves = jax.tree.map(np.asarray, own)
        for _ in range(2):  # compiles, the second time for what the first returned
            self._put(leaves, 0, has_streams)

    @property
    def params(self) -> AdapterStack:
        """What the programs take in place of parameters."""
        return AdapterStack(self._base, self._stacked, self._flags)

    @property
    def named(self) -> Mapping[str, Adapter]:
        """Those that are there, by name, in the order in which they came."""
        return dict(self._named)

    def holds(self, adapter: Adapter) -> bool:
        """Whether it is there still."""
        return self._named.get(adapter.name) is adapter

    def open(self, name: str, directory: Path, sampling: Sampling) -> Opened:
        """Reads an adapter and checks that it can be served.

        Args:
          name: for clients.
          directory: of `export --format adapter`.
          sampling: of the engine, whose penalties and bans hold for all requests.

        Raises:
          UserError: not an adapter, or not one for this base or this form. Names no place of the
            machine.
        """
        where = f"adapter {name!r}"
        try:
            return self._open(name, directory, sampling, where)
        except UserError as error:
            text = str(error).replace(str(directory), where)
            raise UserError(text) from None

    def _open(self, name, directory, sampling, where) -> Opened:
        if not is_portable(directory):
            raise UserError(
                f"{where} is no directory that python -m ssjax.export --format adapter wrote"
            )
        addition = read_addition(directory, self._trained.family)
        config, tokenizer = addition.config, open_tokenizer(directory)
        if config.adaptation.mode == "full":
            raise UserError(f"{where} trained all weights; only adapters of a base are loaded")
        adapter_form.check_fits(config, self._form, where)
        own = make_model(config, tokenizer)
        if own.config.dtype != self._model.config.dtype:
            raise UserError(
                f"{where} was trained beside weights in {own.config.dtype}, and the base is served "
                f"in {self._model.config.dtype}"
            )
        if own.config != self._model.config or addition.base_fingerprint != self._digest:
            raise UserError(
                f"{where} was trained on other base weights (digest "
                f"{addition.base_fingerprint or 'none'}, not {self._digest})"
            )
        if not same_tokens(tokenizer, self.run.tokenizer):
            raise UserError(f"{where} has another tokenizer than the base")
        adapter_form.check_leaves(addition.leaves, own, where)
        leaves = adapter_form.fitted(addition.leaves, config, self._form, self._model)
        run = dataclasses.replace(
            self.run,
            config=dataclasses.replace(config, streams=self._form.streams),
            tokenizer=tokenizer,  # the same ids; the chat template and the ends are its own
            task=task_of_run(config.data.task, directory),
        )
        decode = run.decode_config(**self._changes)
        _check_sampling(make_sampling(decode), sampling, where)
        has_streams = config.streams.num_streams > 0
        return Opened(name, directory.name, run, decode, has_streams, self._as_decoded(leaves))

    def add(self, opened: Opened) -> Adapter:
        """Gives it a place; only between rounds.

        Raises:
          UserError: its name is taken, or all places are.
        """
        if opened.name in self._named:
            raise UserError(f"adapter {opened.name!r} has already been loaded; unload it first")
        taken = {adapter.place for adapter in self._named.values()}
        free = [place for place in range(1, 1 + self.max_adapters) if place not in taken]
        if not free:
            raise UserError(
                f"{self.max_adapters} adapters are loaded, which is as many as there is room for; "
                "unload one"
            )
        self._put(opened.leaves, free[0], opened.has_streams)
        adapter = Adapter(
            opened.name, opened.root, free[0], opened.run, opened.decode, opened.has_streams
        )
        self._named[adapter.name] = adapter
        return adapter

    def remove(self, adapter: Adapter) -> None:
        """Frees its place; only between rounds, and when nobody uses it."""
        del self._named[adapter.name]

    def _as_decoded(self, leaves: Params) -> Params:
        """Scanned leaves in float32 as the decoder has them."""
        if not self.run.decoder.model.scan:
            leaves = unstack_layers(leaves)
        return jax.tree.map(lambda x, dtype: x.astype(dtype), leaves, self._dtypes)

    def _put(self, leaves: Params, place: int, has_streams: bool) -> None:
        with jax.set_mesh(self.run.decoder.mesh):
            self._stacked, self._flags = _put(
                (self._stacked, self._flags), (leaves, np.bool_(has_streams)), np.int32(place)
            )


def open_adapters(
    trained: Trained,
    given: Mapping[str, Path],
    *,
    root: Path | None,
    max_adapters: int,
    changes: Mapping[str, Any],
    int8: bool = False,
) -> Adapters:
    """The served model with room for adapters; none is loaded yet.

    The sizes that there is room for are those of the base's own streams and LoRA, of the adapters
    given, and of those in root.

    Args:
      trained: the base, or a run over it, on one device.
      given: adapters that will be loaded at the start, by name.
      root: directory that clients may load from.
      max_adapters: that may be there at once.
      changes: settings that go before those of each adapter.
      int8: decode in eight bits.

    Raises:
      UserError: no adapter says what there must be room for, or they cannot be served together.
    """
    if len(given) > max_adapters:
        raise UserError(f"{len(given)} adapters are given, but --max_adapters is {max_adapters}")
    is_trained = bool(split(trained.params, lora.is_new)[0])
    configs = {"the model of --workdir": trained.config} if is_trained else {}
    configs |= {f"adapter {name!r}": read_config(path) for name, path in given.items()}
    configs |= _in_root(root, configs)
    if len(configs) == is_trained:
        raise UserError(
            "there is no adapter to learn the sizes from; name one with --adapter, or put one into "
            "--adapter_root before the server starts"
        )
    form = adapter_form.common_form(configs)
    dtype = trained.config.model.dtype if is_trained else next(iter(configs.values())).model.dtype
    on_form = _on_form(trained, form, dtype, is_trained)
    run = open_run(on_form, int8=int8, folded=False)
    return Adapters(
        on_form,
        run,
        form,
        has_streams=is_trained and trained.config.streams.num_streams > 0,
        max_adapters=max_adapters,
        root=root,
        changes=changes,
    )


def _in_root(root: Path | None, others: Mapping[str, Config]) -> dict[str, Config]:
    """The configs of what lies in a directory and can be served beside the others, by its name."""
    found: dict[str, Config] = {}
    for path in sorted(root.iterdir()) if root is not None else ():
        if not is_portable(path):
            continue
        name = f"adapter {path.name!r} of --adapter_root"
        try:
            config = read_config(path)
            adapter_form.common_form({**others, **found, name: config})
            found[name] = config
        except UserError as error:
            say(f"no room is made for what cannot be loaded: {error}")
    return found


def _on_form(trained: Trained, form: AdapterForm, dtype: str, is_trained: bool) -> Trained:
    """A base whose config is of the form: its own leaves in it, or zeros.

    Args:
      trained: as it was read.
      form: for it.
      dtype: of its weights; a base that nothing was trained on is read again, if it has another.
      is_trained: whether something was.
    """
    config, params = trained.config, base_only(trained)
    wanted = form.streams.num_stream_layers, dtype
    if not is_trained and (config.streams.num_stream_layers, config.model.dtype) != wanted:
        base = open_base(config.model.pretrained or trained.directory, dtype)
        params = base.read_params(form.streams.num_stream_layers, jnp.dtype(dtype))
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=dtype))
    config = dataclasses.replace(config, streams=form.streams, adaptation=form.adaptation)
    model = make_model(config, trained.tokenizer)
    own = jax.tree.map(np.asarray, split(trained.params, lora.is_new)[0])
    own = adapter_form.fitted(own, trained.config, form, model)
    return dataclasses.replace(
        trained,
        config=config,
        trainable=jax.tree.map(jnp.asarray, own),
        frozen=cast(params, dtype),
    )


def check_name(name: str, base_name: str) -> None:
    """Raises: UserError, if clients cannot call an adapter so."""
    if not name.strip() or len(name) > _LONGEST_NAME or not name.isprintable():
        raise UserError(f"an adapter's name must be a text of 1 to {_LONGEST_NAME} characters")
    if name == base_name:
        raise UserError(f"{name!r} is the name of the base model; give the adapter another one")


def within_root(root: Path, path: str) -> Path:
    """The directory that a client names, from the root or absolute.

    Raises:
      UserError: it is not inside of the root, links followed.
    """
    top = root.resolve()
    found = (top / path).resolve() if "\0" not in path else top
    if found == top or not found.is_relative_to(top):
        raise UserError("lora_path must name a directory in the server's --adapter_root")
    return found


def _check_sampling(own: Sampling, served: Sampling, where: str) -> None:
    free = ("temperature", "top_k", "top_p", "min_p")
    for field in dataclasses.fields(Sampling):
        mine, theirs = getattr(own, field.name), getattr(served, field.name)
        if field.name not in free and mine != theirs:
            raise UserError(
                f"{where} was made for {field.name} {mine}, which is {theirs} for all requests "
                f"here; start the server with --{field.name}"
            )


def _put_leaves(stack, leaves, place):
    return jax.tree.map(lambda all, one: all.at[place].set(one), stack, leaves)


_put = jax.jit(_put_leaves, donate_argnums=0)
