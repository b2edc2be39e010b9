"""Times ops and writes benchmarks/results/<machine>/ops-<dtype>.json: python benchmarks/run.py [op ...] [--large].

python benchmarks/run.py models/NAME ..., data/NAME or gpu/NAME runs that file of this folder instead, and
`compile_report` shows the costs of the Triton kernels on every chip, without one; `scaling` prints
the tables of docs/scaling.md.
"""

import importlib
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import harness

from modernbert_fast import dispatch, durable, timing


def main() -> None:
    if "/" in "".join(sys.argv[1:2]):
        importlib.import_module(sys.argv[1].replace("/", ".")).main(sys.argv[2:])
        return
    if sys.argv[1:2] in (["compile_report"], ["scaling"]):
        sys.exit(importlib.import_module(sys.argv[1]).main(sys.argv[2:]))
    parser = harness.parser("", __doc__)
    parser.add_argument("ops", nargs="*", default=list(dispatch.TABLE), help="all when none is named")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--large", action="store_true", help="the cases beyond the cache and at 8,192 tokens instead")
    parser.add_argument("--compile", action="store_true", help="also time torch.compile of plain torch")
    parser.add_argument("--dtype", default=None, choices=("float32", "bfloat16", "float16"))
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, args.dtype or ("bfloat16" if torch.cuda.is_available() else "float32"))
    harness.keep_freed_memory()
    facts = timing.machine_facts()  # now: the checkout may change while this runs
    records = []
    for op in args.ops:
        for case in harness.cases(op, device, dtype, args.large):
            print(f"{op}: {case.name}", flush=True)
            for record in harness.measure(case, args.rounds, args.compile):
                records.append(record)
                print(
                    f"  {record['arm']:<14} {record['median_us']:>10.1f} us  {record['gb_s']:>8.1f} GB/s"
                    f"  {record['gflop_s']:>9.1f} GFLOP/s  {record['share_of_copy']:>6.1%} of copy"
                    f"  {record['share_of_linear']:>6.1%} of linear  {record['times_torch']:>6.2f}x torch",
                    flush=True,
                )
    name = f"ops{'-large' if args.large else ''}-{str(dtype).removeprefix('torch.')}.json"
    path = harness.record_path(args.output, name)
    durable.write_json(path, {"machine": facts, "records": records})
    print(path)


if __name__ == "__main__":
    main()
