"""The error for what a user can correct."""


class InputError(ValueError):
    """Wrong input (a file, a flag, an argument); the message is one sentence that names it and says
    what to do.

    The command-line programs print it without a traceback.
    """
