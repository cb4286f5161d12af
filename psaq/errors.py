"""The errors a user can mend: the message names the input, what is wrong with it, and the way out."""


class PsaqError(ValueError):
    """Bad input. The command line prints the message without a traceback and exits with code 2."""
