"""Stop strings: where the text of a completion ends, whatever its tokens are."""

from collections.abc import Callable, Sequence

from ssjax.decoding.completion import Completion


def cut_at_stop(
    completion: Completion, decode_text: Callable[[Sequence[int]], str], stops: Sequence[str]
) -> tuple[Completion, str]:
    """Cuts a completion at the stop string that its text completes first.

    That depends on the text alone, not on where tokens begin and end: read character by
    character, the output stops when a stop string is complete, and its text is what stands
    before that string (before the longest, if several are complete at once). Of the tokens
    those are kept that the stop string needs, and of the passes those that emitted them.

    Args:
      completion: as decoded.
      decode_text: ids to text. The text of more ids may differ at its end from that of fewer,
        as where a character takes several tokens.
      stops: strings that are not empty.

    Returns:
      The completion and its text; both as they are where there is no stop string.
    """
    text = decode_text(completion.tokens)
    found = [(text.find(stop), stop) for stop in stops]
    ends = [(start + len(stop), start) for start, stop in found if start >= 0]
    if not ends:
        return completion, text
    end, start = min(ends)
    needed = next(
        count
        for count in range(1, len(completion.tokens) + 1)
        if decode_text(completion.tokens[:count]).startswith(text[:end])
    )
    return completion.first(needed, "stop"), text[:start]


def settled(text: str, stops: Sequence[str]) -> str:
    """The beginning of a text that more tokens cannot change.

    Left away are an unfinished character, which decodes to U+FFFD, and the longest end that begins
    a stop string.
    """
    text = text.rstrip("\ufffd")
    begun = [
        length for stop in stops for length in range(1, len(stop)) if text.endswith(stop[:length])
    ]
    return text[: len(text) - max(begun, default=0)]
