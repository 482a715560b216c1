"""The picture that other sites show beside a link to a page: its title, its question, and the book's three pictures."""

import io
import re
from base64 import b64decode
from pathlib import Path
from textwrap import wrap

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

HERO = Path(__file__).parents[1] / "book" / "images" / "hero.svg"
SIZE = (1200, 630)  # what the large networks ask for
MARGIN, GAP = 60, 24
INK, GREY, BLUE = "#1f2430", "#48566b", "#176de8"


def draw_card(path: Path, title: str, question: str, book: str) -> None:
    """Write a JPEG of 1200 x 630 pixels to `path`, whose folder is made if need be."""
    card = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(card)
    draw.rectangle((0, 0, 18, SIZE[1]), fill=BLUE)
    y = MARGIN - 16
    for text, size, weight, colour in ((title, 52, "bold", INK), (question, 30, "normal", GREY)):
        font = ImageFont.truetype(font_manager.findfont(font_manager.FontProperties(weight=weight)), size)
        for line in wrap(text, width=2000 // size, max_lines=2, placeholder=" …"):
            draw.text((MARGIN, y), line, font=font, fill=colour)
            y += int(1.25 * size)
        y += 10
    pictures = re.findall(r"data:image/jpeg;base64,([^\"]*)", HERO.read_text(encoding="utf-8"))
    side = min((SIZE[0] - 2 * MARGIN + GAP) // len(pictures) - GAP, SIZE[1] - y - 90)
    for i, content in enumerate(pictures):
        with Image.open(io.BytesIO(b64decode(content))) as picture:
            card.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (MARGIN + i * (side + GAP), y + 10))
    font = ImageFont.truetype(font_manager.findfont(font_manager.FontProperties(weight="bold")), 26)
    draw.text((MARGIN, SIZE[1] - 62), book if book != title else "", font=font, fill=BLUE)
    path.parent.mkdir(parents=True, exist_ok=True)
    card.save(path, quality=88, optimize=True)
