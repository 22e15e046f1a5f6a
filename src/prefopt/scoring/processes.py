"""What several processes that score side by side agree on."""

from __future__ import annotations

import torch


def largest(number: int) -> int:
    """The largest of the numbers that all processes bring, each of which must ask; of one process its own.

    Where networks are sharded every process must call them equally often, though its own rows need fewer calls.
    """
    dist = torch.distributed
    if not (dist.is_available() and dist.is_initialized()):
        return number
    device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
    found = torch.tensor(number, device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)
