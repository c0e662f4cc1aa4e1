"""Bad input by the hundred thousand: no crash, no 5xx, no answer later than two seconds, and memory that stays flat.

    python -m benchmarks.fuzz [--pictures 100000] [--others 20000] [--folders 2000] [--seed 0] [--json FILE]

A service of its own gets damaged pictures (every format, damaged in its pieces with lengths and checksums set right),
JSON, forms and tensor messages of wrong sizes; a process of its own reads damaged model folders. Every answer is held
to be a 200 or a documented 4xx with its problem, and to tell no path and no stack trace. An answer later than two
seconds is asked for once more, alone, and counts if it takes two seconds of CPU time: on a busy machine a request of
two hundred pictures waits for its turn. A model folder counts if reading it takes as much CPU time. The JSON names all
that were late; `--only KIND NUMBER` writes the one request of that number to standard output. With the defaults about
twenty minutes.
"""

import argparse
import asyncio
import json
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.contenders import ours
from benchmarks.fuzz.asking import Findings, ask_all
from benchmarks.fuzz.folders import FolderFindings, try_folders
from benchmarks.fuzz.requests import MAKERS, make
from benchmarks.load import ROOT, Cores, Target, cpu_seconds, running, tree_pss_mb
from benchmarks.serving import machine, picture

_PARTS = 20
# What a damaged header claims is decoded up to here; a photograph's default would make a slow machine of a fast one.
_LIMITS = {
    "EQUIPOISE_MAX_PIXELS": "4000000",
    # There is room for all that the connections hold at once: a request that is refused for it reaches no decoder.
    "EQUIPOISE_QUEUE_SECONDS": "0",
    "EQUIPOISE_QUEUE_IMAGES": "100000",
}
_CONNECTIONS = 8


def fuzz(target: Target, kinds: dict[str, int], seed: int) -> tuple[Findings, list[float]]:
    """What came back, and the service's memory after each twentieth of the requests, megabytes."""
    findings, memory = Findings(), []
    for part in range(_PARTS):
        numbers = {kind: range(part * count // _PARTS, (part + 1) * count // _PARTS) for kind, count in kinds.items()}
        spent = partial(cpu_seconds, target.process.pid)
        asyncio.run(ask_all(target.port, numbers, seed, _CONNECTIONS, findings, spent))
        memory.append(tree_pss_mb(target.process.pid))
        print(f"{findings.count():,} requests, {memory[-1]:.0f} MB, {len(findings.wrong)} wrong", flush=True)
        if target.process.poll() is not None:
            findings.wrong.append(("service", part, f"it ended with status {target.process.returncode}"))
            break
    return findings, memory


def figures(
    seed: int, findings: Findings, memory: list[float], folders: FolderFindings, seconds: float
) -> dict[str, Any]:
    """memory: of twentieths of the run. slow: kind, number, CPU seconds; busy: how many more were late."""
    slow = findings.slow()
    return {
        "machine": machine(),
        "seed": seed,
        "requests": findings.count(),
        "statuses": {
            kind: {str(status): number for status, number in sorted(found.items())}
            for kind, found in findings.statuses.items()
        },
        "problems": dict(findings.types.most_common()),
        "wrong": findings.wrong[:100],
        "slow": [(late.kind, late.number, late.cpu_seconds) for late in slow],
        "busy": len(findings.late) - len(slow),
        "late": [late._asdict() for late in findings.late],
        "longest_seconds": round(findings.longest_seconds, 2),
        "memory_mb": [round(size, 1) for size in memory],
        "folders": sum(folders.outcomes.values()) + len(folders.crashes) + len(folders.hangs),
        "folder_outcomes": dict(folders.outcomes.most_common()),
        "folder_unforeseen": folders.unforeseen,
        "folder_crashes": folders.crashes,
        "folder_hangs": folders.hangs,
        "folder_slow": folders.slow,
        "folder_longest_seconds": round(folders.longest_seconds, 2),
        "folder_memory_mb": [round(size, 1) for size in folders.memory_mb],
        "seconds": round(seconds),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100_000, help="damaged pictures (default: 100,000)")
    parser.add_argument("--others", type=int, default=20_000, help="requests of each other kind (default: 20,000)")
    parser.add_argument("--folders", type=int, default=2_000, help="damaged model folders (default: 2,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs=2, metavar=("KIND", "NUMBER"), help="write this request and do nothing else")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    arguments = parser.parse_args()
    if arguments.only:
        request = make(arguments.only[0], arguments.seed, int(arguments.only[1]))
        print(request.path, request.headers, file=sys.stderr)
        sys.stdout.buffer.write(request.body)
        return 0
    good = ROOT / "model_store" / "equivae-digits" / "1"
    kinds = {kind: arguments.pictures if kind == "picture" else arguments.others for kind in MAKERS}
    start = time.monotonic()
    server = ours(good)
    with running(replace(server, environment=server.environment | _LIMITS), Cores(), picture(good)) as target:
        findings, memory = fuzz(target, kinds, arguments.seed)
    folders = FolderFindings()
    try_folders(good, arguments.folders, arguments.seed, folders)
    found = figures(arguments.seed, findings, memory, folders, time.monotonic() - start)
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    return 1 if findings.wrong or findings.slow() or folders.bad() else 0


if __name__ == "__main__":
    sys.exit(main())
