"""What goes wrong with a request, in the form of OpenAI's errors."""

import re

from ssjax.errors import UserError
from ssjax.serving.adapters import UnknownAdapter
from ssjax.serving.engine import Full, Stopped

# Words with a slash inside, such as the directory of a tokenizer.
_PATH = re.compile(r"[\w.~-]*(?:/[\w.@~+-]+)+/?")

RETRY_SECONDS = 1  # a slot is given back every few passes


class Problem(Exception):
    """An answer other than 200.

    Args:
      message: what is wrong and how to mend it; goes to the client.
      status: of HTTP.
      param: the field of the body that is wrong.
      code: a word or a number for programs.
      kind: its type, as the body calls it; empty: by the status.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | int | None = None,
        kind: str = "",
    ):
        super().__init__(message)
        self.status, self.param, self.code, self.kind = status, param, code, kind

    def body(self) -> dict:
        """The error as JSON."""
        if self.kind:
            kind = self.kind
        elif self.status in (401, 403):
            kind = "authentication_error"
        elif self.status == 429:
            kind = "rate_limit_error"
        else:
            kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        """That go with it."""
        if self.status == 401:
            # So that a browser asks for the key, as a password of any user.
            return {"WWW-Authenticate": 'Basic realm="ssjax", charset="UTF-8"'}
        return {"Retry-After": str(RETRY_SECONDS)} if self.status in (429, 503) else {}


def problem_of(error: UserError, workdir: str) -> Problem:
    """What a client is told of an error that a user can mend.

    Args:
      error: of the engine or the model; it may name places of this machine, which clients are not
        to see.
      workdir: the place that most of them name.
    """
    message = _PATH.sub("the model", str(error).replace(workdir, "the model"))
    if isinstance(error, Full):
        return Problem(message, 429, code="queue_full")
    if isinstance(error, Stopped):
        return Problem(message, 503, code="stopping")
    if isinstance(error, UnknownAdapter):
        return Problem(message, 404, param="model", code="model_not_found")
    return Problem(message)
