"""A figure as the page holds it: dark where the reader prefers dark.

Paper, ink and grid change, and what would be black on black; the methods' colours stay what they are.
"""

from __future__ import annotations

import re

DARK = {
    "#ffffff": "#1b1f25",  # paper
    "#000000": "#e4e7eb",
    "#262626": "#d3d8de",  # labels
    "#cccccc": "#3c444f",  # grid
    "#3b3b3b": "#c8ccd2",  # dense_single, keep_all
    "#1d1d1d": "#f4f4f4",  # a part of the parts
    "#555555": "#a9b1bb",
    "#666666": "#a9b1bb",
    "#0072b2": "#3a9bdc",  # too dark a blue for a dark page; the hue stays
    "#7a5195": "#b18ad3",  # and too dark a violet
}


def with_dark_mode(svg: str) -> str:
    """`svg` with the style sheet; what it looks like on a light page does not change."""
    rules = []
    for light, dark in DARK.items():
        for kind in ("fill", "stroke"):
            if f"{kind}: {light}" in svg:
                rules.append(f'[style*="{kind}: {light}"]{{{kind}:{dark}!important}}')
    # Glyphs that name no colour are black.
    rules.append(f"text,g[id^=text] > g:not([style*=fill]){{fill:{DARK['#000000']}}}")
    sheet = f"<style>@media (prefers-color-scheme: dark){{{''.join(rules)}}}</style>"
    return re.sub(r"(<svg [^>]*>)", lambda found: found.group(1) + sheet, svg, count=1)
