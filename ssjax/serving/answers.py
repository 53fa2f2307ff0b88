"""Completions as text while they grow: from the engine's thread to who waits for them."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Iterator, Sequence

from ssjax.data import pipeline
from ssjax.decoding.completion import Completion
from ssjax.decoding.stop_strings import settled
from ssjax.run import Run
from ssjax.serving.engine import Engine
from ssjax.serving.problems import Problem
from ssjax.serving.ticket import CANCELLED, TIMEOUT, TOO_COMPLEX, Asked, Ticket


@dataclasses.dataclass(frozen=True)
class Piece:
    """An answer so far. Its text begins with that of the one before."""

    index: int  # of the answer in the response
    text: str
    completion: Completion  # cut at a stop string; its finish is "unfinished" until the last piece
    ticket: Ticket


async def answer(
    run: Run, engine: Engine, asked: Sequence[Asked], stops: Sequence[str], *, every: bool
) -> AsyncIterator[Piece]:
    """The pieces of several answers, as they come.

    Whatever is left when nobody waits any more is cancelled. Who reads slowly gets fewer pieces,
    not a longer queue.

    Args:
      run, engine: the model.
      asked: one for each answer.
      stops: texts that end an answer.
      every: all pieces are wanted, not only the last of each answer.

    Raises:
      UserError: one of them cannot be answered; then none is.
      Problem: an answer could not be ended.
    """
    loop = asyncio.get_running_loop()
    tickets, events = [], []
    try:
        for each in asked:
            event = asyncio.Event()
            tickets.append(engine.submit(each, lambda event=event: _tell(loop, event)))
            events.append(event)
        queue: asyncio.Queue[Piece | Exception] = asyncio.Queue(maxsize=1)
        reader = _Reader(run, engine, stops, every, queue)
        tasks = [
            asyncio.create_task(reader.read(index, ticket, event))
            for index, (ticket, event) in enumerate(zip(tickets, events, strict=True))
        ]
        try:
            left = len(tasks)
            while left:
                piece = await queue.get()
                if isinstance(piece, Exception):
                    raise piece
                left -= piece.completion.finish != "unfinished"
                yield piece
        finally:
            for task in tasks:
                task.cancel()
    finally:
        for ticket in tickets:
            if not ticket.ended:
                engine.cancel(ticket)


def run_pieces(run: Run, before: str, piece: Piece, first_run: int) -> Iterator[dict]:
    """What each pass added to a text.

    Args:
      run: the model.
      before: the text that was known already.
      piece: with the text now.
      first_run: the last run that was yielded, whose text may go on; 0 at first.

    Yields:
      Number of the run, its tokens, its kept draft nodes and what is new of its text.
    """
    completion, shown = piece.completion, len(before)
    decode_text = run.tokenizer.decode_continuation
    whole = decode_text(completion.tokens)
    space = len(whole) - len(pipeline.without_space(whole))
    for number in range(first_run, len(completion.runs)):
        end = sum(completion.runs[: number + 1])
        last = number + 1 == len(completion.runs)
        reach = len(piece.text) if last else len(decode_text(completion.tokens[:end])) - space
        reach = min(max(reach, shown), len(piece.text))
        if reach > shown:
            yield {
                "run": number,
                "tokens": completion.runs[number],
                "kept": completion.kept[number - 1] if number else 0,
                "text": piece.text[shown:reach],
            }
        shown = reach


def draft_pieces(run: Run, piece: Piece, after: int) -> Iterator[dict]:
    """What was drafted for the passes of a text, as far as it was kept; see `Ticket.drafts`.

    Args:
      run: the model.
      piece: with the passes until now.
      after: the last pass that is known already.

    Yields:
      Number of the run, and of each node, the root first, its text, its parent (-1: none) and
      whether it was kept.
    """
    completion, tokenizer = piece.completion, run.tokenizer
    for number in range(after + 1, completion.calls + 1):
        draft = piece.ticket.drafts.get(number)
        if draft is None:
            continue
        began = sum(completion.runs[:number])
        kept = completion.tokens[began : began + completion.kept[number - 1]]
        texts = [tokenizer.token_bytes(token).decode(errors="replace") for token in draft.tokens]
        yield {
            "run": number,
            "texts": texts,
            "parents": list(draft.parents),
            "kept": draft.kept(kept),
        }


def _tell(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
        loop.call_soon_threadsafe(event.set)


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads tickets for one response."""

    run: Run
    engine: Engine
    stops: Sequence[str]
    every: bool
    queue: asyncio.Queue

    async def read(self, index: int, ticket: Ticket, event: asyncio.Event) -> None:
        """Puts the pieces of a ticket, or what went wrong, into the queue."""
        try:
            finish = "unfinished"
            while finish == "unfinished":
                await event.wait()
                event.clear()
                piece = self._piece(index, ticket)
                if piece is not None:
                    finish = piece.completion.finish
                    await self.queue.put(piece)
        except Exception as error:
            await self.queue.put(error)

    def _piece(self, index: int, ticket: Ticket) -> Piece | None:
        """None: nothing that is wanted."""
        if not (self.every or self.stops or ticket.ended):
            return None
        completion, text = self.run.finish(ticket.completion, self.stops)
        if completion.finish in _UNANSWERED:
            raise Problem(*_UNANSWERED[completion.finish])
        if completion.finish == "unfinished":
            return (
                Piece(index, settled(text, self.stops), completion, ticket) if self.every else None
            )
        if completion.finish == "stop":
            self.engine.cancel(ticket, "stop")
        return Piece(index, text, completion, ticket)


_UNANSWERED = {
    "error": ("the model's output is not finite; look for nan or inf in its weights", 500),
    TOO_COMPLEX: ("the grammar is too complex to be followed; give a simpler one", 400),
    TIMEOUT: ("the answer took longer than this server gives a request", 504),
    CANCELLED: ("the server is stopping; try another one", 503),
}
