"""The one error that users see."""


class PrefoptError(ValueError):
    """A wrong input, said so that the user can repair it: what is wrong, where, and what would be right.

    The command line prints the message and ends with exit code 2; `--debug` shows the traceback.
    """


class NotFinite(PrefoptError):
    """Training or its result left the finite numbers: a finding about the settings, not a wrong input."""


def first_line(error: BaseException, most: int = 300) -> str:
    """What a library's error says, in one line for a message; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:most]
