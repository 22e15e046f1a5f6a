"""How images are noised before they are scored: one file per way, found by the name that a method asks for."""

from .base import Inputs, Network, Noised, Noising, noising_for, noisings
from .forward import Forward

__all__ = ["Forward", "Inputs", "Network", "Noised", "Noising", "noising_for", "noisings"]
