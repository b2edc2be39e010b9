"""The processes that torchrun started for one command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """This process among `world` ones; alone without torchrun."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def from_first(self, flags: list[bool]) -> list[bool]:
        """The flags that the first process gives, on all of them; each gives as many, when all have come here."""
        if self.world == 1 or not flags:
            return flags
        shared = torch.tensor(flags, dtype=torch.uint8)
        dist.broadcast(shared, 0)
        return shared.bool().tolist()

    def sum(self, number: int) -> int:
        """Of all processes, when all have come here."""
        total = torch.tensor(number)
        if self.world > 1:
            dist.all_reduce(total)
        return int(total)


@contextmanager
def joined() -> Iterator[Ranks]:
    """Joins what torchrun started, on gloo, and takes the accelerator of this process as the current one."""
    if not dist.is_torchelastic_launched():
        yield Ranks()
        return
    if torch.accelerator.is_available():
        torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]) % torch.accelerator.device_count())
    # One may have days of work more than another; torchrun ends all when one dies.
    dist.init_process_group("gloo", timeout=timedelta(days=30))
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
