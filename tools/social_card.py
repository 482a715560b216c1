"""The picture that other sites show beside a link to a page: its title, its question, and the book's three pictures."""

from pathlib import Path
from textwrap import wrap

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

HERO = Path(__file__).parents[1] / "book" / "images" / "hero.jpg"
SIZE = (1200, 630)  # what the large networks ask for
MARGIN = 60
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
    with Image.open(HERO) as hero:
        width = SIZE[0] - 2 * MARGIN
        height = min(round(hero.height * width / hero.width), SIZE[1] - y - 90)
        hero = hero.resize((round(hero.width * height / hero.height), height), Image.Resampling.LANCZOS)
        card.paste(hero, (MARGIN, y + 10))
    font = ImageFont.truetype(font_manager.findfont(font_manager.FontProperties(weight="bold")), 26)
    draw.text((MARGIN, SIZE[1] - 62), book if book != title else "", font=font, fill=BLUE)
    path.parent.mkdir(parents=True, exist_ok=True)
    card.save(path, quality=88, optimize=True)
