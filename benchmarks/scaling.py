"""What embedding takes in time and money, simulated on measured rates: python benchmarks/run.py scaling [--write].

A shard goes through stages: tokenise, model, network, store. Each has workers of one pace and a queue of a few shards
before the next, so the slowest one sets the pace of all. --write puts the tables into docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import harness

from modernbert_fast import durable

RESULTS = harness.RESULTS
PAGE = harness.FOLDER.parent / "docs" / "scaling.md"
MARKS = "<!-- tables of benchmarks/run.py scaling -->\n", "<!-- end -->\n"
PRICES = {
    "Zen 5, 2 cores": 0.10,
    "Zen 3, 2 cores": 0.08,
    "H200": 4.00,
}  # dollars an hour, 2026-11: examples, not offers
CORPORA = {"1 M": 10**6, "1 B": 10**9, "100 B": 10**11}  # tokens
QUEUE = 4  # shards that may wait before a stage: AHEAD and WRITES of the command
STEADY = 2000  # shards after which the pace is taken to stay


class Rate(NamedTuple):
    """Tokens a second of one device."""

    device: str
    model: str
    length: int
    tokens_s: float
    source: str


class Stage(NamedTuple):
    """Workers that each take `seconds` for a shard."""

    name: str
    workers: int
    seconds: float


class Kind(NamedTuple):
    """What a corpus is made of and what is kept of a text."""

    name: str
    length: int  # tokens of a text
    kept: int  # bytes of a text


class Site(NamedTuple):
    """Where it runs: inputs of the user."""

    cores: int = 16  # beside each device
    network: float = 1.25e9  # bytes a second into the machine that writes
    disk: float = 1e9  # bytes a second
    startup: float = 60.0  # seconds until a model is loaded
    texts: int = 256  # of a shard


KINDS = (
    Kind("512 tokens, a vector of 768 fp32", 512, 4 * 768),
    Kind("16 tokens, a vector of 768 fp32", 16, 4 * 768),
    Kind("512 tokens, 128 fp16 a token", 512, 2 * 128 * 512),
)


def simulate(stages: Sequence[Stage], shards: int, queue: int = QUEUE) -> tuple[float, dict[str, float]]:
    """Seconds until the last shard has left, and the share of that time in which each stage's workers work.

    A worker that is done holds its shard until the next stage's queue has room.
    """
    count = min(shards, max(STEADY, 20 * max(stage.workers for stage in stages)))
    starts = [[0.0] * count for _ in stages]
    leaves = [[0.0] * count for _ in stages]
    for shard in range(count):
        came = 0.0
        for number, stage in enumerate(stages):
            free = leaves[number][shard - stage.workers] if shard >= stage.workers else 0.0
            starts[number][shard] = start = max(came, free)
            if number:  # the shard has left the stage before when this one's queue took it
                before = shard - queue
                room = starts[number][before] if before >= 0 else 0.0
                leaves[number - 1][shard] = max(came, room)
            came = start + stage.seconds
        leaves[-1][shard] = came
    ends = leaves[-1]
    seconds = ends[-1]
    if shards > count:
        most = max(stage.workers for stage in stages)
        span = count // 2 // most * most  # whole rounds of the workers
        seconds += (shards - count) * (ends[-1] - ends[-1 - span]) / span
    return seconds, {stage.name: shards * stage.seconds / stage.workers / seconds for stage in stages}


def stages(rate: Rate, kind: Kind, devices: int, tokenizer: Mapping[str, float], site: Site) -> list[Stage]:
    """The stages of a run on some devices of one kind."""
    tokens = site.texts * kind.length
    kept = site.texts * kind.kept
    text = tokens * tokenizer["bytes_per_token"]
    return [
        Stage("tokenise", devices * site.cores, tokens / tokenizer["tokenizer_tokens_s"]),
        Stage("model", devices, tokens / rate.tokens_s),
        Stage("network", 1, (text + kept) / site.network),
        Stage("store", 1, kept / site.disk),
    ]


def read(path: str) -> Any:
    """A record under benchmarks/results."""
    return json.loads((RESULTS / path).read_text())


def rates() -> Iterator[Rate]:
    """Measured ones of the records, and predicted ones of gpu/predict for the GPU."""
    for device, path, dtype in (
        ("Zen 5, 2 cores", "epyc-zen5-2core/encoder-bfloat16-1x64-8x512-var.json", "bfloat16"),
        ("Zen 3, 2 cores", "epyc-zen3-2core/encoder-float32.json", "float32"),
    ):
        (result,) = (found for found in read(path)["results"] if found["workload"] == "8x512")
        (arm,) = (found for found in result["arms"] if found["name"] == "modernbert_fast")
        yield Rate(device, "base", 512, arm["tokens_per_second"], f"measured, {dtype}")
    yield from gpu_rates()


def gpu_rates() -> Iterator[Rate]:
    """Of an H200 in bfloat16."""
    from gpu import predict

    path = RESULTS / "h200" / "bench-gpu.json"
    cases = {case["case"]: case for case in json.loads(path.read_text())["cases"]} if path.exists() else {}
    found = list(predict.predictions(lengths=(512, 8192)))
    for model in ("base", "large"):
        for length in (512, 8192):
            case = cases.get(f"encoder {model}, {length}s", {"state": "not run"})
            if case["state"] == "passed":
                (row,) = (row for row in case["result"]["rows"] if row["arm"] == "modernbert_fast")
                yield Rate("H200", model, length, row["Mtok/s"] * 1e6, "measured, bfloat16")
            yield Rate("H200", model, length, 1 / predict.encoder_seconds(model, length, found), "predicted")


def tables(prices: Mapping[str, float], site: Site) -> str:
    """The tables of the page."""
    known, record = list(rates()), read("epyc-zen5-2core/encode.json")
    return "\n".join([*_rates(known, record), *_costs(known, record, prices, site), *_bottlenecks(known, record, site)])


def _rates(known: Sequence[Rate], record: Mapping[str, Any]) -> Iterator[str]:
    yield from _table("tokens/s", "device", "model", "texts of", "tokens/s", "source")
    for rate in known:
        yield _row(rate.device, rate.model, rate.length, f"{rate.tokens_s:,.0f}", rate.source)
    tokenizer = record["tokenizer_tokens_s"]
    yield _row("Zen 5, one core", "tokenizer of tiny", "short", f"{tokenizer:,.0f}", "measured")
    yield ""
    whole = record["whole"]
    names = {"tokenise": "tokenisation", "model": "model", "store": "writing"}
    count = -(-whole["texts"] // Site().texts)
    spent = {name: whole["seconds"] * whole["shares"][share] / 100 for name, share in names.items()}
    seconds, _ = simulate([Stage(name, 1, spent[name] / count) for name in names], count)
    yield (
        f"The simulation beside the measured run of {whole['texts']:,} texts on Zen 5, given what each stage took:"
        f" {seconds:.1f} s, measured {whole['seconds']:.1f} s."
    )
    yield ""


def _costs(known: Sequence[Rate], record: Mapping[str, Any], prices: Mapping[str, float], site: Site) -> Iterator[str]:
    priced = "; ".join(f"{device} ${price:.2f}" for device, price in prices.items())
    yield f"Prices an hour, of 2026-11, examples and no offers: {priced}. A model takes {site.startup:.0f} s to start."
    yield ""
    columns = [f"{corpus} tokens" for corpus in CORPORA]
    yield from _table("time and cost", "devices", "model", "texts of", "source", *columns)
    for rate in known:
        kind = Kind("", rate.length, 4 * 768)
        for devices in (1, 64) if rate.device == "H200" else (1,):
            cells = []
            for tokens in CORPORA.values():
                shards = max(1, round(tokens / (site.texts * kind.length)))
                seconds = site.startup + simulate(stages(rate, kind, devices, record, site), shards)[0]
                cells.append(f"{_time(seconds)}, {_money(seconds / 3600 * devices * prices[rate.device])}")
            yield _row(f"{devices} x {rate.device}", rate.model, rate.length, rate.source, *cells)
    yield ""


def _bottlenecks(known: Sequence[Rate], record: Mapping[str, Any], site: Site) -> Iterator[str]:
    rate = next(rate for rate in known if rate.device == "H200")  # measured, where there is such a record
    yield (
        f"H200, base, {rate.tokens_s / 1e6:.2f} Mtok/s each ({rate.source}), {site.cores} cores beside each tokenise;"
        f" one machine writes, with {site.network / 1e9:.2f} GB/s of network and {site.disk / 1e9:.2f} GB/s of disk."
        " The share of the time in which each stage works:"
    )
    yield ""
    yield from _table(
        "bottleneck", "texts", "devices", "Mtok/s", "tokenise", "model", "network", "store", "the slowest"
    )
    for kind in KINDS:
        for devices in (1, 8, 64, 512):
            found = stages(rate, kind, devices, record, site)
            shards = 100 * STEADY
            seconds, busy = simulate(found, shards)
            reached = shards * site.texts * kind.length / seconds
            shares = [f"{share:.0%}" for share in busy.values()]
            yield _row(kind.name, devices, f"{reached / 1e6:,.2f}", *shares, max(busy, key=lambda name: busy[name]))
    yield ""


def _table(title: str, *columns: str) -> Iterator[str]:
    yield f"### {title[0].upper()}{title[1:]}"
    yield ""
    yield _row(*columns)
    yield "|---" * len(columns) + "|"


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _time(seconds: float) -> str:
    for unit, size in (("years", 365 * 86400), ("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s"


def _money(dollars: float) -> str:
    return f"${dollars:,.0f}" if dollars >= 10 else f"${dollars:.2f}"


def page(text: str, found: str) -> str:
    """The page with other tables."""
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return f"{before}{MARKS[0]}\n{found}\n{MARKS[1]}{after}"


def price(text: str) -> tuple[str, float]:
    """An argparse type: DEVICE=DOLLARS."""
    device, _, dollars = text.rpartition("=")
    if device not in PRICES:
        raise argparse.ArgumentTypeError(f"{text}: write DEVICE=DOLLARS, the device one of {', '.join(PRICES)}")
    return device, float(dollars)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="run.py scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--price", type=price, action="append", default=[], help="DEVICE=DOLLARS an hour")
    for name, default in Site()._asdict().items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help="default: %(default)s")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scaling.md")
    args = parser.parse_args(argv)
    found = tables({**PRICES, **dict(args.price)}, Site(*(getattr(args, name) for name in Site._fields)))
    print(found)
    if args.write:
        durable.write_text(PAGE, page(PAGE.read_text(), found))
