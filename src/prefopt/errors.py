"""The one error that users see."""

import errno


class PrefoptError(ValueError):
    """A wrong input, said so that the user can repair it: what is wrong, where, and what would be right.

    The command line prints the message and ends with exit code 2; `--debug` shows the traceback.
    """


class NotFinite(PrefoptError):
    """Training or its result left the finite numbers: a finding about the settings, not a wrong input."""


FULL = ("No space left on device", "unexpected pos", "PytorchStreamWriter", "file write failed")
"""What safetensors and torch's own writer say of a full disk, neither of them as an OSError."""


def of_the_machine(error: BaseException) -> str | None:
    """What to do about an error of disk or rights, which no input is guilty of; None for every other error."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT) or any(words in str(error) for words in FULL):
        return "no space left on the disk. Make room and start again: the run goes on where it was"
    if not isinstance(error, OSError) or number is None:
        return None
    where = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror}{where}. Mend this and start the same command again; --debug shows where it happened"


def first_line(error: BaseException, most: int = 300) -> str:
    """What a library's error says, in one line for a message; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:most]
