"""The plots of `ggpy bench`, as SVG: tokens per second over the depth of the context and over the batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ggpy.eval.bench import Measurement

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
WIDTH, HEIGHT = 460, 320  # of a panel, in pixels
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 56, 46  # its margins
LEGEND_LINE = 16


@dataclass(frozen=True)
class Panel:
    """One pair of axes; `series` are lines by their names, points (x, tokens per second)."""

    title: str
    x_label: str
    series: dict[str, list[tuple[int, float]]]


def draw(results: list[Measurement], title: str) -> str:
    """An SVG document with a panel for each question that the results answer."""
    panels = _panels(results)
    legend = max((len(panel.series) for panel in panels), default=0) * LEGEND_LINE
    width, height = WIDTH * len(panels), HEIGHT + LEGEND_LINE // 2 + legend
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12" fill="#222222">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _text(width / 2, 20, f"{title}, {results[0].n_threads} threads", "middle", 'font-size="14" font-weight="bold"'),
    ]
    for place, panel in enumerate(panels):
        parts += [f'<g transform="translate({WIDTH * place} 0)">', *_panel(panel), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _panels(results: list[Measurement]) -> list[Panel]:
    """Prompts and generation apart, as their speeds are; a line needs two points."""
    prompt: dict[str, list[tuple[int, float]]] = {}
    depth: dict[str, list[tuple[int, float]]] = {}
    batch: dict[str, list[tuple[int, float]]] = {}
    for result in results:
        case = result.case
        if case.n_prompt:
            prompt.setdefault(f"pp{case.n_prompt}", []).append((case.n_depth, result.tok_s))
        else:
            name, several = f"tg{case.n_gen}", f"{case.n_parallel} sequences"
            depth.setdefault(name if case.n_parallel == 1 else f"{name}, {several}", []).append(
                (case.n_depth, result.tok_s)
            )
            at = f" at depth {case.n_depth}" if case.n_depth else ""
            batch.setdefault(name + at, []).append((case.n_parallel, result.tok_s))
    found = (
        Panel("reading a prompt", "tokens in the context", prompt),
        Panel("generating", "tokens in the context", depth),
        Panel("generating together", "sequences", batch),
    )
    return [panel for panel in found if any(len(points) > 1 for points in panel.series.values())]


def _panel(panel: Panel) -> list[str]:
    xs = sorted({x for points in panel.series.values() for x, _ in points})
    step = _nice_step(max(y for points in panel.series.values() for _, y in points))
    top = step * math.ceil(max(y for points in panel.series.values() for _, y in points) / step)

    def at(x: float, y: float) -> tuple[float, float]:
        span = WIDTH - LEFT - RIGHT
        return (
            LEFT + span * (x - xs[0]) / (xs[-1] - xs[0]),
            HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * y / top,
        )

    parts = [_text(LEFT, TOP - 12, f"{panel.title}, tok/s", "start", 'font-weight="bold"')]
    for i in range(round(top / step) + 1):
        _, y = at(xs[0], i * step)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{"#888888" if i == 0 else "#e2e2e2"}"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{i * step:,g}", "end"))
    free = -math.inf
    for x in xs:
        px, _ = at(x, 0)
        parts.append(f'<path d="M{px:.1f} {HEIGHT - BOTTOM}v5" stroke="#888888"/>')
        if px >= free:  # small values crowd on the left: those without room keep their tick alone
            parts.append(_text(px, HEIGHT - BOTTOM + 19, f"{x}", "middle"))
            free = px + 8 * len(str(x)) + 10
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - BOTTOM + 37, panel.x_label, "middle"))
    for i, (name, points) in enumerate(panel.series.items()):
        colour = COLOURS[i % len(COLOURS)]
        places = [at(x, y) for x, y in sorted(points)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in places]
        y = HEIGHT + LEGEND_LINE // 2 + LEGEND_LINE * i
        parts.append(f'<path d="M{LEFT} {y}h22" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<circle cx="{LEFT + 11}" cy="{y}" r="3.5" fill="{colour}"/>')
        parts.append(_text(LEFT + 30, y + 4, name, "start"))
    return parts


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'


def _nice_step(largest: float) -> float:
    """1, 2 or 5 times a power of ten, so that four to eight steps reach the largest value."""
    raw = max(largest, 1e-9) / 6
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
