"""Text of a completion while it is still being decoded."""

import codecs
from collections.abc import Iterable

from ssjax.data.tokenizers.tokenizer import Tokenizer


class TextStream:
    """Ids in, text out, each character once and only when it is complete.

    A token may hold a part of a character, so text follows the bytes of the tokens; at most
    three bytes wait for their rest. What `add` and `finish` return is together exactly
    `tokenizer.decode_continuation` of all ids, however they were split.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, ids: Iterable[int]) -> str:
        """The text that these ids complete; later ids cannot change it."""
        return self._decoder.decode(b"".join(self._tokenizer.token_bytes(i) for i in ids))

    def finish(self) -> str:
        """The rest: U+FFFD if the last character remained incomplete, else nothing."""
        return self._decoder.decode(b"", final=True)
