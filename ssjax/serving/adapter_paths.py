"""Loading and unloading adapters over HTTP, with the bodies and the errors of vLLM."""

import asyncio

import pydantic
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response

from ssjax.errors import UserError
from ssjax.serving.adapters import AdapterInUse, Adapters, UnknownAdapter, check_name, within_root
from ssjax.serving.bodies import read_body
from ssjax.serving.engine import Engine, Stopped
from ssjax.serving.guard import read_json
from ssjax.serving.problems import Problem


class LoadBody(pydantic.BaseModel):
    """Of /v1/load_lora_adapter."""

    lora_name: str
    lora_path: str  # in the server's --adapter_root, or absolute and inside of it


class UnloadBody(pydantic.BaseModel):
    """Of /v1/unload_lora_adapter."""

    lora_name: str


def add_adapter_paths(app: FastAPI, engine: Engine, base_name: str, max_body_bytes: int) -> None:
    """Adds both paths.

    Args:
      app: to which.
      engine: whose adapters, if it has any.
      base_name: which no adapter may have.
      max_body_bytes: of a body.
    """

    @app.post("/v1/load_lora_adapter")
    async def _(request: Request) -> Response:
        body = read_body(LoadBody, await read_json(request, max_body_bytes))
        adapters = _loadable(engine)
        name, sampling = body.lora_name, engine.sampling
        try:
            check_name(name, base_name)
            directory = within_root(adapters.root, body.lora_path)
            opened = await asyncio.to_thread(adapters.open, name, directory, sampling)
            await asyncio.wrap_future(engine.load_adapter(opened))
        except UserError as error:
            raise _refused(error, adapters) from None
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    @app.post("/v1/unload_lora_adapter")
    async def _(request: Request) -> Response:
        body = read_body(UnloadBody, await read_json(request, max_body_bytes))
        adapters = _loadable(engine)
        try:
            await asyncio.wrap_future(engine.unload_adapter(body.lora_name))
        except UserError as error:
            raise _refused(error, adapters) from None
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


def _loadable(engine: Engine) -> Adapters:
    if not engine.ready:
        raise Problem("the server is not ready; try again later", 503, code="not_ready")
    if engine.adapters is None or engine.adapters.root is None:
        raise Problem(
            "adapters are not loaded here; start the server with --adapter_root",
            kind="BadRequestError",
            code=400,
        )
    return engine.adapters


def _refused(error: UserError, adapters: Adapters) -> Problem:
    if isinstance(error, Stopped):
        return Problem(str(error), 503, code="stopping")
    status, kind = 400, "InvalidUserInput"
    if isinstance(error, UnknownAdapter):
        status, kind = 404, "NotFoundError"
    elif isinstance(error, AdapterInUse):
        status, kind = 409, "ConflictError"
    message = str(error).replace(str(adapters.root.resolve()), "--adapter_root")
    return Problem(message, status, kind=kind, code=status)
