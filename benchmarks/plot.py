"""Draw time against density from results files, for the README.

``python -m benchmarks.plot benchmarks/results/FILE.json ... docs/speed.png`` takes what
``pytest benchmarks/test_layers.py --benchmark-json=FILE.json`` wrote. What several files hold is taken from the last.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib import pyplot

SHOWN = {"4608_to_512_batch_64": "Linear 4608 → 512, batch 64", "128": "Conv 3x3, 128 channels of 16 x 16, batch 64"}
STYLES = {
    "lth_fast": {"color": "#c0392b", "linewidth": 2.2, "marker": "o"},
    "dense": {"color": "#2c3e50", "linewidth": 1.4},
    "torch.nn.utils.prune": {"color": "#7f8c8d", "linewidth": 1.4, "linestyle": "--"},
    "SparseProp": {"color": "#2980b9", "linewidth": 1.2, "marker": "s", "markersize": 4},
    "SparseLab": {"color": "#27ae60", "linewidth": 1.2, "marker": "^", "markersize": 4},
}

Curves = dict[str, list[tuple[float, float]]]


def curves(entries: list[dict[str, Any]]) -> dict[str, Curves]:
    """Layer → side → (density, milliseconds), in ascending density."""
    found: dict[str, dict[str, dict[float, float]]] = defaultdict(lambda: defaultdict(dict))
    for entry in entries:
        extra = entry["extra_info"]
        if "rivals" not in extra or "layer" not in extra:
            continue
        layer = str(entry["params"].get("name", entry["params"].get("channels")))
        sides = {name: result["rival"] for name, result in extra["rivals"].items()}
        sides["lth_fast"] = next(iter(extra["rivals"].values()))["ours"]
        for side, seconds in sides.items():
            found[layer][side][extra["density"]] = 1e3 * seconds
    return {layer: {side: sorted(points.items()) for side, points in sides.items()} for layer, sides in found.items()}


def draw(entries: list[dict[str, Any]], picture: Path) -> None:
    figure, panels = pyplot.subplots(1, len(SHOWN), figsize=(10, 3.8), layout="constrained")
    by_layer = curves(entries)
    for panel, (layer, title) in zip(panels, SHOWN.items(), strict=True):
        for side, style in STYLES.items():
            points = by_layer[layer].get(side)
            if points:
                panel.plot(*zip(*points, strict=True), label=side, **style)
        panel.set(title=title, xscale="log", yscale="log", xlabel="density", ylabel="forward + backward, ms")
        panel.set_xticks([0.01, 0.05, 0.1, 0.2, 0.5, 1.0], ["0.01", "0.05", "0.1", "0.2", "0.5", "1"])
        panel.grid(alpha=0.3, which="major")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    *files, picture = sys.argv[1:] or [""]
    if not files:
        sys.exit(f"expected results files and a picture to write, got {sys.argv[1:]}; {__doc__}")
    draw([entry for file in files for entry in json.loads(Path(file).read_text())["benchmarks"]], Path(picture))
