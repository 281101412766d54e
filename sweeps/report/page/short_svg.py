"""Matplotlib's SVG with fewer bytes and nothing else to see, for the page; the files beside it stay what they are.

compact(svg)        # half as long; a thousand marks take 5 kB instead of 100

A mark is an element of 100 bytes, so that a figure of 10,000 records would be megabytes. Many marks of one look become
one path whose vertices carry the mark (SVG's `marker`), many strokes of one look become one path.
"""

from __future__ import annotations

import itertools
import re

MANY = 100  # shapes of one look in one artist, drawn one by one up to here
TOGETHER = 250  # of many: marks of other looks stay above and below them much as they were
GRID = 0.5  # points: of many, those that lie nearer are drawn as one

_ARTIST = re.compile(
    r'(\n   <g id="(?P<name>(?:line2d|PathCollection|LineCollection)_\d+)">\n)(?P<shapes>.*?)(?=\n   </g>)', re.DOTALL
)
_MARK = re.compile(
    r'(?P<open><g clip-path="(?P<clip>[^"]+)">\s*)?<use xlink:href="#(?P<href>[^"]+)" x="(?P<x>[^"]+)" y="(?P<y>[^"]+)"'
    r' style="(?P<style>[^"]*)"/>(?(open)\s*</g>)'
)
# A scatter's marks are written out where their outline is short.
_OUTLINE = re.compile(
    r'<path d="(?P<outline>M (?P<x>\S+) (?P<y>\S+) \n[^"]*z\n)" clip-path="(?P<clip>[^"]+)" style="(?P<style>[^"]*)"/>'
)
_STROKE = re.compile(
    r'<path d="M (?P<x>\S+) (?P<y>\S+) \nL (?P<x2>\S+) (?P<y2>\S+) \n" clip-path="(?P<clip>[^"]+)"'
    r' style="(?P<style>[^"]*)"/>'
)


def compact(svg: str) -> str:
    """Coordinates to a hundredth of a point, short names of glyphs, no comments, no indentation, many marks as one."""
    svg = _ARTIST.sub(_joined, svg)
    svg = re.sub(r"(?<![\d.(])(\d+\.\d{2})\d+", r"\1", svg)
    svg = re.sub(r"<!--(?:.*?)-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(id="|href="#)DejaVuSans-', r"\1d", svg)
    return re.sub(r"\s*\n\s*", "\n", svg)


def _joined(artist: re.Match[str]) -> str:
    shapes, defined, drawn = artist["shapes"], "", []
    for shape in (_MARK, _OUTLINE, _STROKE):
        looks: dict[tuple[str, str, str], list[re.Match[str]]] = {}
        for found in shape.finditer(shapes):
            mark = ""
            if shape is _MARK:
                mark = f'<use xlink:href="#{found["href"]}" style="{found["style"]}"/>'
            elif shape is _OUTLINE:
                mark = f'<path d="{_relative(found)}" style="{found["style"]}"/>'
            looks.setdefault((found["clip"] or "", found["style"], mark), []).append(found)
        many = {look: found for look, found in looks.items() if len(found) > MANY}
        for (clip, style, mark), each in many.items():
            name = f"{artist['name']}-{defined.count('<marker')}"
            defined += f'<marker id="{name}" overflow="visible" markerUnits="userSpaceOnUse">{mark}</marker>' * bool(
                mark
            )
            drawn += [
                (some[0].start(), _clipped(_carrying(some, name) if mark else _strokes(some, style), clip))
                for some in (each[first : first + TOGETHER] for first in range(0, len(each), TOGETHER))
            ]
        gone = {found.start() for each in many.values() for found in each}
        shapes = shape.sub(lambda found, gone=gone: "" if found.start() in gone else found[0], shapes)
    if not drawn:
        return artist[0]
    # The marks of a line lie inside a group that clips them, which is the last one of the artist.
    end = shapes.rfind("</g>") if artist["name"].startswith("line2d") else len(shapes)
    end = len(shapes) if end < 0 else end
    added = f"<defs>{defined}</defs>" + "".join(text for _, text in sorted(drawn))
    return artist[1] + shapes[:end] + added + shapes[end:]


def _clipped(shape: str, clip: str) -> str:
    return f'<g clip-path="{clip}">{shape}</g>' if clip else shape


def _carrying(found: list[re.Match[str]], mark: str) -> str:
    """A path without a stroke, whose vertices carry the mark."""
    at, path = (0.0, 0.0), []
    for place in sorted({(_rounded(one["x"]), _rounded(one["y"])) for one in found}):
        path.append(f"{place[0] - at[0]:g} {place[1] - at[1]:g}")
        at = place
    return f'<path d="m{" ".join(path)}" style="fill: none; marker: url(#{mark})"/>\n'


def _strokes(found: list[re.Match[str]], style: str) -> str:
    ends = sorted({tuple(_rounded(one[end]) for end in ("x", "y", "x2", "y2")) for one in found})
    path = "".join(f"M{x:g} {y:g}l{x2 - x:g} {y2 - y:g}" for x, y, x2, y2 in ends)
    return f'<path d="{path}" style="{style}"/>\n'


def _relative(found: re.Match[str]) -> str:
    """The outline as seen from its first point, the same for every mark of the shape."""
    from_x = (float(found["x"]), float(found["y"]))
    numbers = itertools.count()
    moved = re.sub(r"-?[\d.]+", lambda n: f"{float(n[0]) - from_x[next(numbers) % 2]:.1f}", found["outline"])
    return moved.replace("-0.0", "0.0")


def _rounded(coordinate: str) -> float:
    return round(float(coordinate) / GRID) * GRID
