"""From files to examples, and from examples to tokens."""

from prefopt.data.config import DataConfig
from prefopt.data.example import NOTE_AXES, Example, Message

__all__ = ["NOTE_AXES", "DataConfig", "Example", "Message"]
