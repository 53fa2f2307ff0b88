"""The paths of the server, as OpenAI and vLLM have them."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Collection

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from ssjax.data.prompts import check_text, read_chat
from ssjax.errors import UserError
from ssjax.serving.adapter_paths import add_adapter_paths
from ssjax.serving.bodies import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    TokenizeBody,
    read_body,
)
from ssjax.serving.figures import Figures
from ssjax.serving.guard import HostGuard, KeyGuard, read_json
from ssjax.serving.page import add_page
from ssjax.serving.problems import Problem, problem_of
from ssjax.serving.service import Response as Answers
from ssjax.serving.service import Service, to_json


@dataclasses.dataclass(frozen=True)
class AppLimits:
    """Of what clients may send."""

    max_body_bytes: int
    max_choices: int  # completions of one request, prompts times n


def make_app(
    service: Service,
    figures: Figures,
    limits: AppLimits,
    *,
    api_key: str | None = None,
    hosts: Collection[str] | None = None,
) -> FastAPI:
    """The ASGI application.

    Args:
      service: what answers; its engine is run by another thread.
      figures: of that engine.
      limits: of bodies.
      api_key: needed on every path but /health; None: nobody is asked.
      hosts: that are answered for, see `HostGuard`; None: any.
    """
    # Its pages of documentation load scripts from elsewhere.
    app = FastAPI(title="ssjax", docs_url=None, redoc_url=None, openapi_url=None)
    _add_problems(app, service)
    _add_completions(app, service, limits)
    _add_texts(app, service, limits)
    _add_state(app, service, figures)
    add_adapter_paths(app, service.engine, service.name, limits.max_body_bytes)
    add_page(app)
    if api_key is not None:
        app.add_middleware(KeyGuard, key=api_key)
    if hosts is not None:
        app.add_middleware(HostGuard, hosts=hosts)
    return app


def _add_problems(app: FastAPI, service: Service) -> None:
    @app.exception_handler(Problem)
    async def _(request: Request, error: Problem) -> Response:
        return _json(error.body(), error.status, error.headers)

    @app.exception_handler(UserError)
    async def _(request: Request, error: UserError) -> Response:
        problem = problem_of(error, str(service.run.workdir))
        return _json(problem.body(), problem.status, problem.headers)

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> Response:
        problem = Problem(str(error.detail), error.status_code)
        return _json(problem.body(), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def _(request: Request, error: Exception) -> Response:
        # What went wrong is for who runs the server; uvicorn logs it.
        return _json(_OUR_FAULT.body(), 500)


def _add_completions(app: FastAPI, service: Service, limits: AppLimits) -> None:
    async def respond(request: Request, kind: type, answers_of: Callable) -> Response:
        body = read_body(kind, await read_json(request, limits.max_body_bytes))
        _check_ready(service)
        answers = answers_of(body)
        if len(answers.asked) > limits.max_choices:
            raise Problem(
                f"{len(answers.asked)} completions are asked for at once, but at most "
                f"{limits.max_choices} are given here",
                param="n",
            )
        for asked in answers.asked:
            if asked.grammar is None:
                service.engine.check(asked)
            else:  # a large grammar takes a while, in which others go on
                await asyncio.to_thread(service.engine.check, asked)
        if body.stream:
            return await _stream(request, answers, service)
        return _json(await _unless_gone(request, answers.whole()))

    @app.post("/v1/completions")
    async def _(request: Request) -> Response:
        return await respond(request, CompletionBody, service.of_completion)

    @app.post("/v1/chat/completions")
    async def _(request: Request) -> Response:
        return await respond(request, ChatBody, service.of_chat)


def _add_texts(app: FastAPI, service: Service, limits: AppLimits) -> None:
    run = service.run

    @app.post("/tokenize")
    async def _(request: Request) -> Response:
        body = read_body(TokenizeBody, await read_json(request, limits.max_body_bytes))
        if (body.prompt is None) == (body.messages is None):
            raise Problem("give prompt or messages, one of them")
        if body.messages is not None:
            ids = run.encode_prompt(read_chat(body.chat, "messages"), raw=False)
        elif body.add_special_tokens:
            ids = run.encode_prompt(check_text(body.prompt, "prompt"), raw=True)
        else:
            ids = run.tokenizer.encode(check_text(body.prompt, "prompt"))
        return _json({"count": len(ids), "max_model_len": _longest(service), "tokens": ids})

    @app.post("/detokenize")
    async def _(request: Request) -> Response:
        body = read_body(DetokenizeBody, await read_json(request, limits.max_body_bytes))
        return _json({"prompt": run.tokenizer.decode(body.tokens)})


def _add_state(app: FastAPI, service: Service, figures: Figures) -> None:
    started, engine = int(time.time()), service.engine

    @app.get("/v1/models")
    async def _() -> Response:
        def model(name: str, root: str, parent: str | None) -> dict:
            return {
                "id": name,
                "object": "model",
                "created": started,
                "owned_by": "ssjax",
                "root": root,
                "parent": parent,
                "max_model_len": _longest(service),
            }

        models = [model(service.name, service.name, None)]
        models += [
            model(adapter.name, adapter.root, service.name) for adapter in service.adapters.values()
        ]
        return _json({"object": "list", "data": models})

    @app.get("/health")
    async def _() -> Response:
        return Response(status_code=200 if engine.problem is None else 503)

    @app.get("/ready")
    async def _() -> Response:
        _check_ready(service)
        return Response(status_code=200)

    @app.get("/metrics")
    async def _() -> Response:
        return PlainTextResponse(figures.text(), media_type="text/plain; version=0.0.4")


def _longest(service: Service) -> int:
    limits = service.engine.limits
    return limits.max_prompt_tokens + limits.max_new_tokens


def _check_ready(service: Service) -> None:
    if not service.engine.ready:
        raise Problem("the server is not ready; try again later", 503, code="not_ready")


async def _stream(request: Request, answers: Answers, service: Service) -> Response:
    """Server-sent events. What cannot begin is refused before the first of them."""
    events = answers.events()
    first = await _unless_gone(request, anext(events))

    async def body() -> AsyncIterator[str]:
        async with contextlib.aclosing(events):
            yield first
            try:
                async for event in events:
                    yield event
            except (Problem, UserError) as error:
                if isinstance(error, UserError):
                    error = problem_of(error, str(service.run.workdir))
                yield f"data: {to_json(error.body())}\n\n"

    # Proxies that collect answers would undo the stream.
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(body(), media_type="text/event-stream", headers=headers)


async def _unless_gone(request: Request, work) -> object:
    """What the work gives; it is cancelled where the client leaves before."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Problem("the client has left", 499)
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()


def _json(value, status: int = 200, headers: dict | None = None) -> Response:
    return Response(
        to_json(value), status, headers=headers, media_type="application/json; charset=utf-8"
    )


_OUR_FAULT = Problem("the server has failed; whoever runs it finds the reason in its log", 500)
