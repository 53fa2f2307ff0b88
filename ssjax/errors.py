"""The exceptions that reach a user as a single line, and the exit codes of a process.

0 done; 2 bad input (one line on stderr says what, where and how to mend it); 3 damaged state and
4 diverged training, one line as well; 42 stopped by a signal after saving, run the same command
again to continue; 130 interrupted where there was nothing to save.
"""

EXIT_BAD_INPUT = 2
EXIT_RESUMABLE = 42
EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141  # what a shell reports of a program that SIGPIPE ended


class UserError(Exception):
    """Bad input: the message says what is wrong, where, and how to mend it.

    >>> try:
    ...     ssjax.load("runs/misspelt")
    ... except ssjax.UserError as error:
    ...     print(error)  # doctest: +ELLIPSIS
    runs/misspelt does not exist; ...

    Entry points print it as one line on stderr and exit with `exit_code`; anything else that
    escapes is a defect of ours and keeps its traceback.
    """

    exit_code = EXIT_BAD_INPUT


class DamagedError(UserError):
    """What a run wrote before cannot be read any more: a checkpoint that is half there."""

    exit_code = 3


class DivergedError(UserError):
    """The loss or the gradient of a training is not finite; nothing of that step is kept."""

    exit_code = 4


class StorageError(UserError):
    """The storage failed in a way that may pass, such as a lost mount: worth another try."""

    exit_code = 1
