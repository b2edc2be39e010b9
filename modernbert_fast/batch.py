"""PackedBatch: texts laid end to end, made once per batch; nothing after it sees padding."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from modernbert_fast import library
from modernbert_fast.ops import checks, padding


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """B texts of T tokens in all, without padding.

    Attributes:
        cu_seqlens: (B + 1,) int32, text b is rows cu_seqlens[b] to cu_seqlens[b + 1].
        max_seqlen: an upper bound of the longest text's length.
        positions: (T,) int32, what rotary embedding sees.
        max_position: an upper bound of positions, exclusive.
        tiles: (N, 2) int32 tile schedule, shared by all layers.
        shape: (B, S) of the padded grid the tokens came from; (1, T) for flattened input.
        indices: (T,) int64 into that grid; None when every place holds a token.
        columns: (T,) int32, what the window is measured by, when the mask has holes; None when rows are consecutive.
        tokens: (T,) token ids, where the batch was made from ids.
        attended: (T,) bool, which tokens attention sees, where it does not see all of them.
    """

    cu_seqlens: torch.Tensor
    max_seqlen: int
    positions: torch.Tensor
    max_position: int
    tiles: torch.Tensor
    shape: tuple[int, int]
    indices: torch.Tensor | None = None
    columns: torch.Tensor | None = None
    tokens: torch.Tensor | None = None
    attended: torch.Tensor | None = None

    @classmethod
    def from_padded(
        cls,
        shape: tuple[int, int],
        mask: torch.Tensor | None,
        position_ids: torch.Tensor | None = None,
        *,
        device: torch.device | None = None,
        restart: bool = False,
        unattended: torch.Tensor | None = None,
    ) -> PackedBatch:
        """Packs a padded grid.

        Args:
            shape: (B, S).
            mask: (B, S), non-zero where a token is; None when all are. Left padding, right padding and holes are
                fine; rotary positions and the window count the places in a hole.
            position_ids: (B, S) or (1, S), rotary positions that replace those.
            device: of the batch, when neither mask nor position_ids tell.
            restart: a position id of 0 starts a new text.
            unattended: (B, S), non-zero at tokens that see the others of their text and are seen by none, as the
                expansion of a ColBERT query. On a GPU other kernels run than without: a text's last bits may depend on
                whether this is given, and never on what it says of other texts.

        Raises:
            ValueError: on shapes that do not fit, negative positions, or `restart` without position_ids.
        """
        B, S = shape
        checks.shape("unattended", unattended, B, S)
        given = next((x for x in (mask, position_ids, unattended) if x is not None), None)
        device = given.device if given is not None else device
        if mask is None:
            indices, columns = None, None
            cu_seqlens = torch.arange(B + 1, device=device, dtype=torch.int32) * S
            positions = torch.arange(S, device=device, dtype=torch.int32).repeat(B)
        else:
            checks.shape("attention_mask", mask, B, S)
            grid = mask != 0
            has_holes = _has_holes(grid)
            indices, cu_seqlens, positions = padding.plan(grid)  # the host waits here, for T
            columns = positions if has_holes.get() else None
            indices = None if positions.shape[0] == B * S else indices
        max_position = S
        if position_ids is not None:
            grid = _grid(position_ids, B, S)
            positions = grid if indices is None else grid.index_select(0, indices)
            max_position = _bound(positions)
        if restart:
            if position_ids is None:
                raise ValueError("texts are to restart at position id 0, but no position_ids were given")
            cu_seqlens = _restarts(grid.view(B, S), indices)
        total = positions.shape[0]
        tiles = padding.tiles(cu_seqlens, total)
        batch = cls(cu_seqlens, S, positions.contiguous(), max_position, tiles, (B, S), indices, columns)
        return batch if unattended is None else dataclasses.replace(batch, attended=batch.unpad(unattended == 0))

    @classmethod
    def from_flattened(
        cls,
        total: int,
        cu_seqlens: torch.Tensor,
        max_seqlen: int | None = None,
        position_ids: torch.Tensor | None = None,
        unattended: torch.Tensor | None = None,
    ) -> PackedBatch:
        """Takes texts that already lie end to end.

        Args:
            total: number of tokens T.
            cu_seqlens: (B + 1,) int32 or int64 bounds, from 0 to T.
            max_seqlen: longest length or more; read from cu_seqlens when None.
            position_ids: (T,) or (1, T) rotary positions; 0, 1, 2 ... inside each text when None.
            unattended: (1, T), as in from_padded.

        Raises:
            TypeError, ValueError: on bounds that fall, do not span the tokens, or exceed max_seqlen.
        """
        checks.integer(cu_seqlens=cu_seqlens)
        cu_seqlens = cu_seqlens.to(torch.int32)
        checks.cu_seqlens("cu_seqlens", cu_seqlens, total)
        lengths = cu_seqlens.diff()
        if max_seqlen is None or checks.readable(cu_seqlens):
            longest = int(lengths.max()) if lengths.numel() else 0
            if max_seqlen is not None and longest > max_seqlen:
                raise ValueError(f"max_seqlen is {max_seqlen}, but a text has {longest} tokens")
            max_seqlen = longest
        max_position = max_seqlen
        if position_ids is None:
            starts = torch.repeat_interleave(cu_seqlens[:-1], lengths, output_size=total)
            positions = torch.arange(total, device=cu_seqlens.device, dtype=torch.int32) - starts
        else:
            positions = _grid(position_ids, 1, total)
            max_position = _bound(positions)
        tiles = padding.tiles(cu_seqlens, total)
        checks.shape("unattended", unattended, 1, total)
        attended = None if unattended is None else unattended[0] == 0
        place = (positions.contiguous(), max_position, tiles, (1, total))
        return cls(cu_seqlens, max_seqlen, *place, attended=attended)

    @classmethod
    def from_lists(cls, texts: Sequence[Sequence[int]], device: torch.device | str | None = None) -> PackedBatch:
        """Packs lists of token ids; the result carries them as `tokens`."""
        bounds = list(itertools.accumulate((len(text) for text in texts), initial=0))
        tokens = torch.tensor([token for text in texts for token in text], dtype=torch.int64, device=device)
        batch = cls.from_flattened(bounds[-1], torch.tensor(bounds, dtype=torch.int32, device=device))
        return dataclasses.replace(batch, tokens=tokens)

    @property
    def num_texts(self) -> int:
        """B, the number of texts."""
        return self.cu_seqlens.shape[0] - 1

    def unpad(self, x: torch.Tensor) -> torch.Tensor:
        """(B, S, ...) -> (T, ...).

        Raises:
            ValueError: x does not start with the batch's (B, S).
        """
        if tuple(x.shape[:2]) != self.shape:
            raise ValueError(f"the batch has shape {self.shape}, got a tensor of shape {tuple(x.shape)}")
        rows = x.reshape(-1, *x.shape[2:])
        return rows if self.indices is None else padding.unpad(rows, self.indices)

    def pad(self, rows: torch.Tensor) -> torch.Tensor:
        """(T, ...) -> (B, S, ...), zero where no token is."""
        B, S = self.shape
        grid = rows if self.indices is None else padding.pad(rows, self.indices, B * S)
        return grid.view(B, S, *rows.shape[1:])


def _has_holes(grid: torch.Tensor) -> library.Reading:
    """Whether a row of the grid (B, S) has tokens in more than one run."""
    runs = (grid[:, 1:] > grid[:, :-1]).sum(1) + grid[:, :1].sum(1)
    return library.Reading((runs > 1).any())


def _grid(position_ids: torch.Tensor, B: int, S: int) -> torch.Tensor:
    """position_ids (S,), (1, S) or (B, S) -> (B * S,) int32."""
    checks.integer(position_ids=position_ids)
    rows = position_ids.view(-1, position_ids.shape[-1])
    if rows.shape[1] != S or rows.shape[0] not in (1, B):
        raise ValueError(f"position_ids must have shape (1, {S}) or ({B}, {S}), got {tuple(position_ids.shape)}")
    return rows.expand(B, S).reshape(-1).to(torch.int32)


def _bound(positions: torch.Tensor) -> int:
    """One more than the largest position; positions must not be negative."""
    if positions.numel() == 0:
        return 0
    smallest, largest = torch.stack(torch.aminmax(positions)).tolist()
    if smallest < 0:
        raise ValueError(f"position_ids must not be negative, got {smallest}")
    return largest + 1


def _restarts(positions: torch.Tensor, indices: torch.Tensor | None) -> torch.Tensor:
    """Bounds of texts that start at each position 0, masked or not, of positions (B, S), and at each row."""
    starts = positions == 0
    starts[:, :1] = True
    text = starts.flatten().cumsum(0)
    text = text if indices is None else text.index_select(0, indices)
    first = torch.ones_like(text, dtype=torch.bool)
    first[1:] = text.diff() != 0
    end = torch.tensor([text.shape[0]], device=text.device)
    return torch.cat([first.nonzero().squeeze(1), end]).to(torch.int32)
