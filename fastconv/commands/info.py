"""Versions, CPU, threads and compiled-code cache of this installation, and what is switched off and why."""

from __future__ import annotations

import argparse
import json
from typing import Any

from fastconv import info, terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One option."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print what is known."""
    found = info.collect()
    print(json.dumps(found, indent=2) if arguments.json else "\n".join(_lines(found)))
    return 0


def _lines(found: dict[str, Any]) -> list[str]:
    machine, threads, cache = found["machine"], found["threads"], found["cache"]
    caches = ", ".join(f"{level} {terminal.size(count)}" for level, count in machine["cache_bytes"].items() if count)
    limits = ", ".join(f"{name} {limit:g}" for name, limit in threads["limits"].items())
    width = max(map(len, found["versions"]))
    stored = f"{cache['files']} kernels, {terminal.size(cache['bytes'])}"
    return [
        *(f"{name:{width}}  {value or 'not installed'}" for name, value in found["versions"].items()),
        *([f"{'commit':{width}}  {found['commit']}"] if found["commit"] else []),
        "",
        f"CPU      {machine['cpu']}, {machine['cores']} cores, {machine['system']}",
        f"target   {machine['target']}: {machine['vectors']}, {machine['vector_registers']} registers of "
        f"{machine['vector_bits']} bits, {'with' if machine['fused_multiply_add'] else 'without'} fused multiply-add",
        f"caches   {caches} (L1 and L2 of one core)",
        f"threads  {threads['count']}, because of {threads['why']} (limits: {limits})",
        f"layer    {threads['layer'] or 'not started, as there is one thread'}",
        f"cache    {cache['folder'] + ' (' + stored + ')' if cache['folder'] else 'none: no writable folder'}",
        "",
        *(["Switched off:", *(f"  {sentence}" for sentence in found["switched_off"])]
          if found["switched_off"] else ["Nothing is switched off."]),
    ]
