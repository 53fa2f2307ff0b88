"""A model as a service: which answers a body asks for, and what the responses look like."""

import dataclasses
import json
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Sequence

from ssjax.config import DecodeConfig
from ssjax.data.prompts import check_filled, check_text, read_chat
from ssjax.decoding.sampling import make_sampling
from ssjax.run import Run
from ssjax.serving.adapters import Adapter
from ssjax.serving.answers import Piece, answer, draft_pieces, run_pieces
from ssjax.serving.bodies import Asking, ChatBody, CompletionBody, StreamOptions
from ssjax.serving.engine import Engine
from ssjax.serving.figures import FINISH_REASONS, response_metrics
from ssjax.serving.problems import Problem
from ssjax.serving.structure import grammar_of
from ssjax.serving.ticket import Asked

# Fields of `Sampling` that a body may give.
_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "presence_penalty",
    "repetition_penalty",
)


@dataclasses.dataclass(frozen=True)
class Service:
    """What answers bodies."""

    run: Run
    engine: Engine
    name: str  # of the model, for clients
    decode: DecodeConfig  # what a request does not say
    raw: bool  # texts of completions are used without the format of the task, unless they say so
    request_seconds: float  # that a request may take; 0: any

    def of_completion(self, body: CompletionBody) -> "Response":
        """Raises: UserError or Problem: it cannot be answered."""
        raw = self.raw if body.raw is None else body.raw
        if not body.prompts:
            raise Problem("prompt is empty; give at least one", param="prompt")
        prompts = [prompt if isinstance(prompt, str) else tuple(prompt) for prompt in body.prompts]
        for prompt in prompts:
            if isinstance(prompt, str):
                check_text(prompt, "prompt")
        check_filled(prompts)
        adapter = self._adapter(body.model)
        run = adapter.run if adapter else self.run
        encoded = [run.encode_prompt(prompt, raw=raw) for prompt in prompts]
        return self._response(body, adapter, encoded, body.logprobs is not None, chat=False)

    def of_chat(self, body: ChatBody) -> "Response":
        """Raises: UserError or Problem: it cannot be answered."""
        if body.top_logprobs and not body.logprobs:
            raise Problem("top_logprobs needs logprobs to be true", param="top_logprobs")
        chat = read_chat(body.chat, "messages")
        adapter = self._adapter(body.model)
        run = adapter.run if adapter else self.run
        encoded = [run.encode_prompt(chat, raw=False)]
        return self._response(body, adapter, encoded, body.logprobs, chat=True)

    @property
    def adapters(self) -> dict[str, Adapter]:
        """Those that are there, by name."""
        return dict(self.engine.adapters.named) if self.engine.adapters else {}

    def _adapter(self, model: str | None) -> Adapter | None:
        """The adapter that a body names; None: the base. Raises: Problem: there is no such."""
        if model in (None, self.name):
            return None
        found = self.adapters.get(model)
        if found is None:
            raise Problem(
                f"there is no model {model[:80]!r} here; /v1/models lists what there is",
                404,
                param="model",
                code="model_not_found",
            )
        return found

    def _response(
        self, body: Asking, adapter: Adapter | None, prompts, log_probs: bool, chat: bool
    ) -> "Response":
        decode = adapter.decode if adapter else self.decode
        return Response(
            service=self,
            asked=self._asked(body, adapter, decode, prompts),
            stops=decode.stop if body.stops is None else body.stops,
            log_probs=log_probs,
            chat=chat,
            num_prompts=len(prompts),
            options=body.stream_options or StreamOptions(),
        )

    def _asked(
        self,
        body: Asking,
        adapter: Adapter | None,
        decode: DecodeConfig,
        prompts: Sequence[Sequence[int]],
    ) -> list[Asked]:
        """What `run.generate` would be asked for with every prompt n times, and that seed."""
        own = make_sampling(decode)
        given = {name: getattr(body, name) for name in _SAMPLING if getattr(body, name) is not None}
        if given.get("top_k") == -1:
            given["top_k"] = 0
        limit = body.limit
        if limit is None:  # an adapter's settings may ask for more than there is room for
            limit = min(decode.max_new_tokens, self.engine.limits.max_new_tokens)
        tokenizer = adapter.run.tokenizer if adapter else self.run.tokenizer
        eos_ids = () if body.ignore_eos else tokenizer.eos_ids
        grammar = grammar_of(body.response_format, body.structured_outputs)
        deadline = time.monotonic() + self.request_seconds if self.request_seconds else None
        watched = body.stream and (body.stream_options or StreamOptions()).include_drafts
        return [
            Asked(
                prompt=tuple(prompt),
                max_new_tokens=limit,
                sampling=dataclasses.replace(own, **given),
                seed=secrets.randbelow(2**31) if body.seed is None else body.seed,
                place=place,
                eos_ids=(*eos_ids, *(body.stop_token_ids or ())),
                grammar=grammar,
                frequency_penalty=body.frequency_penalty or 0.0,
                num_likeliest=body.num_likeliest,
                deadline=deadline,
                drafting=body.drafting,
                watched=watched,
                adapter=adapter,
            )
            for place, prompt in enumerate(each for each in prompts for _ in range(body.n))
        ]


@dataclasses.dataclass(frozen=True)
class Response:
    """The answers to one body, whole or as a stream."""

    service: Service
    asked: list[Asked]
    stops: tuple[str, ...]
    log_probs: bool
    chat: bool
    num_prompts: int
    options: StreamOptions

    @property
    def model_name(self) -> str:
        """Of who answers."""
        adapter = self.asked[0].adapter
        return adapter.name if adapter else self.service.name

    async def whole(self) -> dict:
        """The response as one object. Raises: UserError or Problem."""
        pieces: list[Piece | None] = [None] * len(self.asked)
        async for piece in self._pieces(every=False):
            pieces[piece.index] = piece
        choices = []
        for piece in pieces:
            choice = {"index": piece.index, "finish_reason": _reason(piece)}
            choice |= {"logprobs": self._log_probs(piece, 0, 0)}
            if self.chat:
                choice["message"] = {"role": "assistant", "content": piece.text, "refusal": None}
            else:
                choice["text"] = piece.text
            choices.append(choice)
        object_name = "chat.completion" if self.chat else "text_completion"
        return self._frame(object_name) | {"choices": choices} | self._statistics(pieces)

    async def events(self) -> AsyncIterator[str]:
        """The response as server-sent events, "[DONE]" last. Raises: as `whole`."""
        frame = self._frame("chat.completion.chunk" if self.chat else "text_completion")
        latest: list[Piece | None] = [None] * len(self.asked)
        next_run = [0] * len(self.asked)
        usage = self.options.include_usage or self.options.continuous_usage_stats
        async for piece in self._pieces(every=True):
            before, latest[piece.index] = latest[piece.index], piece
            if before is None and self.chat:
                yield _event(frame | self._chunk(piece.index, {"role": "assistant", "content": ""}))
            shown = before.text if before else ""
            num_tokens = len(before.completion.tokens) if before else 0
            choice = self._chunk(piece.index, piece.text[len(shown) :])
            choice["choices"][0] |= {
                "finish_reason": _reason(piece),
                "logprobs": self._log_probs(piece, num_tokens, len(shown)),
            }
            if self.options.include_runs:
                runs = list(run_pieces(self.service.run, shown, piece, next_run[piece.index]))
                next_run[piece.index] = runs[-1]["run"] if runs else next_run[piece.index]
                completion = piece.completion
                tokens, calls = len(completion.tokens), completion.calls
                choice["choices"][0] |= {"runs": runs, "tokens": tokens, "calls": calls}
            if self.options.include_drafts:
                after = before.completion.calls if before else 0
                choice["choices"][0]["drafts"] = list(draft_pieces(self.service.run, piece, after))
            if usage:
                known = [piece for piece in latest if piece]
                choice["usage"] = (
                    self._usage(known) if self.options.continuous_usage_stats else None
                )
            yield _event(frame | choice)
        if usage:
            yield _event(frame | {"choices": []} | self._statistics(latest))
        yield "data: [DONE]\n\n"

    def _pieces(self, *, every: bool) -> AsyncIterator[Piece]:
        service = self.service
        return answer(service.run, service.engine, self.asked, self.stops, every=every)

    def _frame(self, object_name: str) -> dict:
        kind = "chatcmpl" if self.chat else "cmpl"
        return {
            "id": f"{kind}-{uuid.uuid4().hex}",
            "object": object_name,
            "created": int(time.time()),
            "model": self.model_name,
        }

    def _chunk(self, index: int, content: str | dict) -> dict:
        if not self.chat:
            text = {"text": content}
        else:
            text = {"delta": {"content": content} if isinstance(content, str) else content}
        choice = {"index": index, **text, "logprobs": None, "finish_reason": None}
        return {"choices": [choice]}

    def _usage(self, pieces: Sequence[Piece]) -> dict:
        copies = len(self.asked) // self.num_prompts
        prompt_tokens = sum(len(asked.prompt) for asked in self.asked[::copies])
        new_tokens = sum(len(piece.completion.tokens) for piece in pieces)
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": new_tokens,
            "total_tokens": prompt_tokens + new_tokens,
        }
        if self.service.engine.prefixes is not None:
            known = sum(piece.ticket.known for piece in pieces if piece.index % copies == 0)
            usage["prompt_tokens_details"] = {"cached_tokens": known}
        return usage

    def _statistics(self, pieces: Sequence[Piece]) -> dict:
        metrics = None
        if len(pieces) == 1:
            [piece] = pieces
            metrics = response_metrics(piece.completion, piece.ticket)
        return {"usage": self._usage(pieces), "metrics": metrics}

    def _told(self, token: int, log_prob: float) -> dict:
        """A token and its log-probability, as chats have them."""
        spelled = self.service.run.tokenizer.token_bytes(token)
        text = spelled.decode(errors="replace")
        # JSON has no infinity.
        return {"token": text, "logprob": max(log_prob, -1e30), "bytes": list(spelled)}

    def _log_probs(self, piece: Piece, num_before: int, text_before: int) -> dict | None:
        """Of the tokens after the first so many."""
        if not self.log_probs:
            return None
        ids, values = (
            x[num_before:] for x in (piece.completion.tokens, piece.completion.log_probs)
        )
        told = [self._told(*each) for each in zip(ids, values, strict=True)]
        likeliest = piece.completion.likeliest
        if likeliest is not None:
            likeliest = [[self._told(*each) for each in best] for best in likeliest[num_before:]]
        if self.chat:
            rest = likeliest or [[] for _ in told]
            content = [own | {"top_logprobs": best} for own, best in zip(told, rest, strict=True)]
            return {"content": content, "refusal": None}
        texts = [each["token"] for each in told]
        offsets = [text_before]
        for text in texts[:-1]:
            offsets.append(offsets[-1] + len(text))
        return {
            "tokens": texts,
            "token_logprobs": [each["logprob"] for each in told],
            # The token itself is told, too, wherever it stands.
            "top_logprobs": likeliest
            and [
                {each["token"]: each["logprob"] for each in (*best, own)}
                for best, own in zip(likeliest, told, strict=True)
            ],
            "text_offset": offsets[: len(texts)],
        }


def _reason(piece: Piece) -> str | None:
    return FINISH_REASONS.get(piece.completion.finish)


def _event(value: dict) -> str:
    return f"data: {to_json(value)}\n\n"


def to_json(value) -> str:
    """JSON on one line, of values that are all finite."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
