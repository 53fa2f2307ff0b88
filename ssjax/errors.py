"""The exceptions that reach a user as a single line, and the exit code of each."""


class UserError(Exception):
    """Bad input: the message says what is wrong, where, and how to mend it.

    Entry points print it as one line on stderr and exit with `exit_code`; anything else that
    escapes is a defect of ours and keeps its traceback.
    """

    exit_code = 2


class DamagedError(UserError):
    """What a run wrote before cannot be read any more: a checkpoint that is half there."""

    exit_code = 3


class DivergedError(UserError):
    """The loss or the gradient of a training is not finite; nothing of that step is kept."""

    exit_code = 4


class StorageError(UserError):
    """The storage failed in a way that may pass, such as a lost mount: worth another try."""

    exit_code = 1
