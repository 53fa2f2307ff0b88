"""The one exception that reaches a user as a single line."""


class UserError(Exception):
    """Bad input: the message says what is wrong, where, and how to mend it.

    Entry points print it as one line on stderr and exit with status 2; anything else that
    escapes is a defect of ours and keeps its traceback.
    """
