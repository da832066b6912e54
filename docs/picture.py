"""Turns coloured terminal output into an SVG picture.

    CLICOLOR_FORCE=1 mechinterp features … | python3 docs/picture.py TITLE > docs/NAME.svg
"""
import html, re, sys, unicodedata

PALETTE = {30: "#1e1e2e", 31: "#f38ba8", 32: "#a6e3a1", 33: "#f9e2af", 36: "#94e2d5", 37: "#cdd6f4", 97: "#ffffff"}
CELL, LINE, PAD, TOP = 8.42, 19, 18, 44


def width(text):
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def runs(line):
    """(text, style) pieces of a line, style a dict of fg, bg, bold, dim."""
    style, out = {}, []
    for part in re.split(r"(\x1b\[[0-9;]*m)", line):
        codes = re.fullmatch(r"\x1b\[([0-9;]*)m", part)
        if not codes:
            if part:
                out.append((part, dict(style)))
            continue
        numbers = [int(n or 0) for n in codes[1].split(";")]
        while numbers:
            n = numbers.pop(0)
            if n == 0:
                style = {}
            elif n == 1:
                style["bold"] = True
            elif n == 2:
                style["dim"] = True
            elif n in (38, 48) and numbers[:1] == [2]:
                style["fg" if n == 38 else "bg"] = "#%02x%02x%02x" % tuple(numbers[1:4])
                numbers = numbers[4:]
            elif n in PALETTE:
                style["fg"] = PALETTE[n]
    return out


lines = sys.stdin.read().rstrip("\n").split("\n")
plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
w, h = PAD * 2 + CELL * max(map(width, plain)), TOP + LINE * len(lines) + PAD
body = []
for row, line in enumerate(lines):
    column, y = 0, TOP + LINE * row
    for text, style in runs(line):
        x = PAD + CELL * column
        if "bg" in style:
            body.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{CELL * width(text):.1f}" height="{LINE}" fill="{style["bg"]}"/>')
        extra = ' font-weight="bold"' if style.get("bold") else ""
        extra += ' opacity=".6"' if style.get("dim") else ""
        body.append(f'<text x="{x:.1f}" y="{y + 14:.1f}" textLength="{CELL * width(text):.1f}" fill="{style.get("fg", "#cdd6f4")}"{extra} '
                    f'xml:space="preserve">{html.escape(text)}</text>')
        column += width(text)
dots = "".join(f'<circle cx="{PAD + 8 + 18 * i}" cy="20" r="5.5" fill="{c}"/>' for i, c in enumerate(("#f38ba8", "#f9e2af", "#a6e3a1")))
print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w:.0f} {h:.0f}" font-family="ui-monospace, Menlo, DejaVu Sans Mono, monospace" font-size="14">'
      f'<rect width="100%" height="100%" rx="10" fill="#1e1e2e"/>{dots}<text x="{w / 2:.0f}" y="25" fill="#7f849c" text-anchor="middle">{html.escape(sys.argv[1])}</text>')
print("\n".join(body))
print("</svg>")
