"""CUDA graphs of the packed encoder: recorded once per bucket of sizes, replayed for every batch that fits in it.

Launching a short text's kernels one by one takes longer than running them. A recording fixes sizes and addresses, so a
batch is written into the static inputs of its bucket, and the rows it leaves become texts of their own, of one tile or
less, which no other text sees. Whatever a recording took for granted is looked at before every replay.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from modernbert_fast import dispatch, encoder, library, modules, one_call, watch
from modernbert_fast.batch import PackedBatch
from modernbert_fast.config import EncoderConfig
from modernbert_fast.ops import checks, padding

MAX_TOKENS = 8192  # beyond it kernels take longer than their launches
MAX_GRAPHS = 32  # of an encoder: the least recently used goes
MAX_BYTES = 2**30  # of an encoder's pool: a bucket that needs more runs eagerly

# Process-wide: graphs share the side stream of their device, and replays of one pool must not overlap.
_lock = threading.Lock()


class Bucket(NamedTuple):
    """Sizes of a recording: it serves batches of at most this many tokens and texts, all of them expanded or none."""

    tokens: int
    texts: int
    expanded: bool = False  # there are tokens that are not attended to, or may be

    @classmethod
    def of(cls, batch: PackedBatch) -> Bucket:
        """The smallest that holds the batch: 64, 96, 128, 192, 256 ... tokens; 1, 4, 16, 64 ... texts."""
        T, B = batch.positions.shape[0], batch.num_texts
        power = max(64, 1 << (T - 1).bit_length())
        between = power // 4 * 3
        tokens = between if power > 64 and between >= T else power
        return cls(tokens, 4 ** (((B - 1).bit_length() + 1) // 2), batch.attended is not None)

    @property
    def fillers(self) -> int:
        """Texts of one tile or less that the rows beyond a batch make up at most: a third of the tokens."""
        return -(-self.tokens // (3 * padding.TILE_ROWS))


class Inputs:
    """Static inputs of a bucket."""

    def __init__(self, bucket: Bucket, device: torch.device) -> None:
        N, slots, rows = bucket.tokens, bucket.texts + bucket.fillers, padding.TILE_ROWS
        self.bucket, self.slots = bucket, slots
        self.ids = torch.zeros(N, dtype=torch.int64, device=device)
        self.cu_seqlens = torch.zeros(slots + 1, dtype=torch.int32, device=device)
        self.positions = torch.zeros(N, dtype=torch.int32, device=device)
        self.attended = torch.ones(N, dtype=torch.bool, device=device) if bucket.expanded else None
        # What is copied beyond a batch: bounds a tile apart up to N, and N for empty texts; positions below a tile.
        steps = torch.arange(1 - bucket.fillers, slots + 1, dtype=torch.int32, device=device)
        self._bounds = steps.clamp_(max=0) * rows + N
        self._places = torch.arange(N, dtype=torch.int32, device=device) % rows
        self._no_ids = torch.zeros_like(self.ids)

    def write(self, batch: PackedBatch, ids: torch.Tensor) -> None:
        """Lays the batch down in the first rows and divides the rest into texts, without a host sync."""
        T = ids.shape[0]
        first = self.bucket.fillers - -(-(self.bucket.tokens - T) // padding.TILE_ROWS)
        bounds = self._bounds[first : first + self.slots - batch.num_texts]
        torch.cat([batch.cu_seqlens, bounds], out=self.cu_seqlens)
        torch.cat([batch.positions, self._places[T:]], out=self.positions)
        torch.cat([ids, self._no_ids[T:]], out=self.ids)
        if self.attended is not None and batch.attended is not None:
            self.attended[:T].copy_(batch.attended)  # what the rows beyond see, nobody sees

    def batch(self, max_position: int) -> PackedBatch:
        """What was written, with its tile schedule."""
        N = self.bucket.tokens
        tiles = padding.tiles(self.cu_seqlens, N)
        place = (self.positions, max_position, tiles, (1, N))
        return PackedBatch(self.cu_seqlens, N, *place, attended=self.attended)


class CudaRecorder:
    """Records graphs of one encoder on a GPU, all in one memory pool."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.pool = device, torch.cuda.graph_pool_handle()
        self.stream, self.read = _side_stream(device)

    def record(self, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Callable[[], None]]:
        """What `run` returns, in memory that stays, and the function that computes it anew."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            run()  # compiles kernels and makes workspaces, which a recording may not
        current.wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            output = run()
        return output, graph.replay

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Orders what the current stream does here after the turn before, on whatever stream that was."""
        with torch.cuda.device(self.device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self.read)
            try:
                yield
            finally:
                self.read.record(stream)

    def settle(self) -> None:
        """Waits until no graph is at work, so that their memory may go."""
        torch.cuda.synchronize(self.device)

    def memory(self) -> int:
        """Bytes of the pool."""
        return sum(segment["total_size"] for segment in torch.cuda.memory_snapshot(self.pool))


@functools.cache
def _side_stream(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Event]:
    """Where graphs of a device are recorded, and the event after which their memory may be written again."""
    return torch.cuda.Stream(device), torch.cuda.Event()


class Graph(NamedTuple):
    """One recording. `kinds` are held because it reads their tables."""

    inputs: Inputs
    kinds: Mapping[str, encoder.LayerKind]
    output: torch.Tensor
    replay: Callable[[], None]


class Graphs:
    """The recordings of one encoder. Copies and pickles of it start empty; several threads may use it.

    Attributes:
        eager: how often calls ran without a graph, by reason.
    """

    def __init__(self) -> None:
        self.eager: Counter[str] = Counter()
        self._watch: _Watch | None = None
        self._recorder: CudaRecorder | None = None
        self._graphs: OrderedDict[Bucket, Graph] = OrderedDict()
        self._refused: dict[Bucket, str] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Graphs:
        return Graphs()

    def __reduce__(self) -> tuple[type[Graphs], tuple[()]]:
        return Graphs, ()

    @torch.compiler.disable
    def encode(
        self,
        model: Any,
        config: EncoderConfig,
        batch: PackedBatch,
        ids: torch.Tensor | None,
        states: list[torch.Tensor] | None = None,
        compiling: bool = False,
    ) -> torch.Tensor | None:
        """encoder.encode() by a recording: (T, C); None, with the reason in `eager`, where it is to run eagerly.

        The bits are those of encoder.encode() on the batch as Inputs.batch() pads it to its bucket.
        """
        with _lock:
            if self._recorder is not None and self._recorder.device != batch.cu_seqlens.device:
                self._forget()  # the model has moved, and wants its memory back
            why = "torch.compile is at work" if compiling else _objection(model, config, batch, ids, states)
            why = why or self._follow(model, config) or self._refused.get(Bucket.of(batch), "")
            if not why and ids is not None:
                recorder = self._recorder = self._recorder or CudaRecorder(ids.device)
                with recorder.turn():
                    if graph := self._graph(recorder, model, config, batch, ids):
                        graph.inputs.write(batch, ids)
                        graph.replay()
                        return graph.output[: ids.shape[0]].clone()
                why = self._refused[Bucket.of(batch)]
            self.eager[why] += 1
        return None

    @property
    def buckets(self) -> list[Bucket]:
        """Those recorded, the least recently used first."""
        return list(self._graphs)

    @property
    def nbytes(self) -> int:
        """Of the recordings' memory, their static inputs apart (24 or 25 bytes a token)."""
        return self._recorder.memory() if self._recorder else 0

    def lines(self, device: torch.device) -> list[str]:
        """For report()."""
        if why := library.no_graphs(device):
            return [f"none: {why}"]
        sizes = ", ".join(f"{b.tokens}x{b.texts}{' expanded' * b.expanded}" for b in sorted(self._graphs))
        lines = [f"{len(self._graphs)} recorded, {self.nbytes / 2**20:.1f} MiB; tokens x texts: {sizes or 'none yet'}"]
        return lines + [f"{count} eager: {why}" for why, count in sorted(self.eager.items())]

    def _graph(
        self, recorder: CudaRecorder, model: Any, config: EncoderConfig, batch: PackedBatch, ids: torch.Tensor
    ) -> Graph | None:
        """The recording for the batch; None where it turned out too large, with the reason in `_refused`."""
        bucket = Bucket.of(batch)
        if bucket in self._graphs:
            self._graphs.move_to_end(bucket)
            return self._graphs[bucket]
        try:
            self._graphs[bucket] = _record(recorder, model, config, batch, ids)
            fits = recorder.memory() <= MAX_BYTES
        except torch.OutOfMemoryError:
            fits = False
        if not fits:  # a pool gives its memory back only as a whole
            refused = self._refused
            self._forget()
            self._refused = {**refused, bucket: f"a recording takes more than {MAX_BYTES >> 20} MiB or the GPU has"}
            return None
        if len(self._graphs) > MAX_GRAPHS:
            recorder.settle()
            self._graphs.popitem(last=False)
        return self._graphs[bucket]

    def _follow(self, model: Any, config: EncoderConfig) -> str:
        """Forgets every recording once the model is no longer what it was; says why it cannot be recorded at all."""
        if self._watch is None or not self._watch.sees_the_same(model):
            self._forget()
            self._watch = _Watch(model, config)
        return self._watch.objection

    def _forget(self) -> None:
        if self._recorder is not None:
            self._recorder.settle()
        self._recorder, self._graphs, self._refused = None, OrderedDict(), {}


@torch.inference_mode(False)
@torch.no_grad()
def _record(recorder: CudaRecorder, model: Any, config: EncoderConfig, batch: PackedBatch, ids: torch.Tensor) -> Graph:
    bucket = Bucket.of(batch)
    inputs, farthest = Inputs(bucket, ids.device), _farthest(config, bucket)
    inputs.write(batch, ids)
    kinds = encoder.prepare(config, inputs.batch(farthest), model.final_norm.weight.dtype).kinds

    def run() -> torch.Tensor:
        return encoder.encode(model, encoder.Packed(inputs.batch(farthest), kinds), inputs.ids)

    return Graph(inputs, kinds, *recorder.record(run))


def _farthest(config: EncoderConfig, bucket: Bucket) -> int:
    """Rows of the rotary tables that a recording reads."""
    return max(config.max_position_embeddings, bucket.tokens)


def _objection(model: Any, config: EncoderConfig, batch: PackedBatch, ids: Any, states: Any) -> str:
    """Why a call is not for a recording; empty when it is."""
    device = batch.cu_seqlens.device
    if why := library.no_graphs(device):
        return why
    if library.wants_gradients():
        return "gradients are wanted: call it under torch.inference_mode()"
    if model.training:
        return "the model is in training mode: call eval()"
    if torch.is_autocast_enabled(device.type):
        return "autocast is on"
    if states is not None:
        return "hidden states are wanted"
    if ids is None:
        return "embeddings are given in place of ids, or a hook looks at them"
    if batch.columns is not None:
        return "the mask has holes"
    if getattr(model, "_is_replica", False):
        return "a replica of DataParallel lives for one call"
    if checks.STRICT:
        return "MODERNBERT_FAST_CHECK=strict reads values"
    if not 0 < ids.shape[0] <= MAX_TOKENS:
        return f"the batch has more than {MAX_TOKENS} tokens, or none"
    if batch.max_position > _farthest(config, Bucket.of(batch)):
        return "positions lie beyond max_position_embeddings"
    return _host_reads(model, config, dispatch.QUERIES_ONLY) if batch.attended is not None else ""


def _host_reads(model: Any, config: EncoderConfig, *flags: str) -> str:
    """Why attention with these flags cannot be recorded; empty when it can."""
    width = config.hidden_size // config.num_attention_heads
    call = dispatch.call_of(model.final_norm.weight, width=width, flags=flags)
    reads = dispatch.chosen("attention", call) == "reference"
    return "the reference row of attention reads bounds on the host" if reads else ""


class _Watch:
    """What a recording takes for granted: the model, and which rows and products are forced. Looked at before every
    replay."""

    def __init__(self, model: Any, config: EncoderConfig) -> None:
        self.objection = "" if _is_plain(model) else "a part is hooked, adapted, quantised, cast, replaced or drops out"
        self.objection = self.objection or _host_reads(model, config)
        self._model, self._forced = watch.Watch(model), _forced()

    def sees_the_same(self, model: Any) -> bool:
        """Whether nothing has changed."""
        return self._forced == _forced() and self._model.sees_the_same(model)


def _forced() -> tuple[dict[str, str], str]:
    return dispatch.forced(), torch.backends.cuda.matmul.fp32_precision


def _is_plain(model: Any) -> bool:
    """Whether the model's weights alone decide what it makes of ids: a recording would repeat nothing else."""
    embeddings, x = model.embeddings, model.embeddings.tok_embeddings.weight
    return (
        modules.is_untouched(embeddings)
        and modules.only_gathers(embeddings.tok_embeddings)
        and modules.is_plain(embeddings.norm, nn.LayerNorm)
        and modules.is_idle(embeddings.drop)
        and modules.is_plain(model.final_norm, nn.LayerNorm)
        and one_call.weights_of_layers(model, x) is not None
    )
