"""The one error that users see."""


class PrefoptError(ValueError):
    """A wrong input, said so that the user can repair it: what is wrong, where, and what would be right.

    The command line prints the message and ends with exit code 2; `--debug` shows the traceback.
    """


class NotFinite(PrefoptError):
    """Training or its result left the finite numbers: a finding about the settings, not a wrong input."""
