"""Times ops and writes benchmarks/results/<machine>/ops.json: python benchmarks/run.py [op ...] [--compile]."""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import harness

from modernbert_fast import dispatch, timing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ops", nargs="*", default=list(dispatch.TABLE), help="all when none is named")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compile", action="store_true", help="also time torch.compile of plain torch")
    parser.add_argument("--dtype", default=None, choices=("float32", "bfloat16", "float16"))
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, args.dtype or ("bfloat16" if torch.cuda.is_available() else "float32"))
    records = []
    for op in args.ops:
        for case in harness.cases(op, device, dtype):
            print(f"{op}: {case.name}", flush=True)
            for record in harness.measure(case, args.rounds, args.compile):
                records.append(record)
                print(
                    f"  {record['arm']:<14} {record['median_us']:>10.1f} us  {record['gb_s']:>8.1f} GB/s"
                    f"  {record['gflop_s']:>9.1f} GFLOP/s  {record['share_of_limit']:>6.1%} of the limit",
                    flush=True,
                )
    path = harness.FOLDER / "results" / harness.machine() / f"ops-{str(dtype).removeprefix('torch.')}.json"
    timing.write_json(path, {"machine": timing.machine_facts(), "records": records})
    print(path)


if __name__ == "__main__":
    main()
