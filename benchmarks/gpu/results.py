"""Puts what the stages of ``gpu.sh`` left into one results file, and prints what it says.

``python results.py LOGS RESULTS``: LOGS holds ``<stage>.log``, ``<stage>.status`` (exit status and seconds) and the
``*.json`` of the stages that measured. The file is that of pytest-benchmark, with the stages beside the benchmarks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

KEPT_CHARACTERS = 6000


def collect(logs: Path) -> dict[str, Any]:
    """The results of all stages."""
    results: dict[str, Any] = {"benchmarks": []}
    for file in sorted(logs.glob("*.json"), key=lambda path: path.stat().st_mtime):
        measured = _read(file)
        results = {**measured, **results, "benchmarks": results["benchmarks"] + measured.get("benchmarks", [])}
    for entry in results["benchmarks"]:
        entry["stats"].pop("data", None)  # single turns: the interval in extra_info is what they say
    results["stages"] = {}
    for status in sorted(logs.glob("*.status"), key=lambda path: path.stat().st_mtime):
        code, seconds = status.read_text().split()
        log = status.with_suffix(".log").read_text(errors="replace")
        results["stages"][status.stem] = {
            "status": int(code) if code.isdigit() else code,
            "seconds": int(seconds),
            "end_of_output": log[-KEPT_CHARACTERS:],
        }
    return results


def _read(file: Path) -> dict[str, Any]:
    """What pytest-benchmark wrote; nothing where it was stopped before or while it did."""
    try:
        measured: dict[str, Any] = json.loads(file.read_text())
    except json.JSONDecodeError:
        return {}
    return measured


def summary(results: dict[str, Any]) -> str:
    """Stages, and every ratio beside its bar."""
    width = max(map(len, results["stages"]), default=0)
    lines = [
        f"{name:<{width}} {'ok' if stage['status'] == 0 else stage['status']!s:<8} {stage['seconds']} s"
        for name, stage in results["stages"].items()
    ]
    for entry in results["benchmarks"]:
        extra = entry["extra_info"]
        if "ratio" in extra:
            bar = f"bar {extra['bar']:.2f}" if "bar" in extra else "no bar"
            lines.append(f"{entry['name']}: {extra['ratio']:.2f} times ({bar}) {extra.get('note', '')}")
            lines += [f"    {kernel}" for kernel in extra.get("kernels", [])[:4]]
    return "\n".join(lines)


def main(logs: str, target: str) -> None:
    results = collect(Path(logs))
    Path(target).write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    print(summary(results))
    print(f"results: {target}")


if __name__ == "__main__":
    main(*sys.argv[1:])
