"""What a network answers to pictures: JSON, and a page of the pictures with their answers."""

import base64
import html
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

import PIL.Image

from mobilenext.files import printable

THUMBNAIL = 224
"""Longest side of the pictures in a page, in pixels."""


@dataclass(frozen=True)
class Answer:
    """The answer to one picture.

    Attributes:
        image: The picture's name.
        label: Its class, if it is known, else None.
        classes: The most probable classes, falling.
        probabilities: Theirs, in [0, 1].
        thumbnail: The picture, small, as JPEG; b"": none is kept.
    """

    image: str
    label: str | None
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    thumbnail: bytes = b""

    @property
    def wrong(self) -> bool:
        """Whether the class is known, and is another one."""
        return self.label is not None and self.label != self.classes[0]

    def line(self) -> str:
        """The answer in one line of a terminal."""
        shares = zip(self.classes, self.probabilities, strict=True)
        texts = ", ".join(f"{printable(name)} {100 * share:.1f} %" for name, share in shares)
        known = f"  (is {printable(self.label)})" if self.wrong and self.label else ""
        return f"{printable(self.image)}:  {texts}{known}"


def thumbnail(image: PIL.Image.Image) -> bytes:
    """A picture, small, as JPEG."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=80)
    return file.getvalue()


def to_json(answers: Sequence[Answer]) -> str:
    """A list of objects: `image`, `class` if it is known, and `predictions`, falling."""
    return json.dumps(
        [
            {
                "image": printable(one.image),
                **({} if one.label is None else {"class": one.label}),
                "predictions": [
                    {"class": name, "probability": share}
                    for name, share in zip(one.classes, one.probabilities, strict=True)
                ],
            }
            for one in answers
        ],
        indent=1,
        ensure_ascii=False,
    )


def below_common_folder(images: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of pictures below the folder that they share, and a line about it if there is one."""
    folders = {os.path.dirname(image) for image in images}
    try:
        common = os.path.commonpath(folders) if len(images) > 1 else ""
    except ValueError:  # of absolute and relative paths, or of several drives
        common = ""
    if not common:
        return list(images), []
    return [os.path.relpath(image, common) for image in images], [f"Pictures in {common}."]


def sheet(answers: Sequence[Answer], title: str, notes: Sequence[str]) -> str:
    """A page of pictures with their answers; it needs no other file.

    Wrong ones come first, from the surest answer on; then the others, from the least sure on.

    Args:
        answers: Those with a thumbnail are shown.
        title: The page's.
        notes: Lines below the title.
    """
    shown = sorted(
        (one for one in answers if one.thumbnail),
        key=lambda one: (
            not one.wrong,
            -one.probabilities[0] if one.wrong else one.probabilities[0],
        ),
    )
    names, place = below_common_folder([one.image for one in shown])
    order = "The least sure answers come first."
    if any(one.wrong for one in shown):
        order = (
            "Wrong answers come first, the surest on top; then right ones, the least sure first."
        )
    said = [*notes, *place, order]
    lines = "\n".join(f'<p class="quiet">{html.escape(printable(note))}</p>' for note in said)
    cards = "\n".join(map(_card, shown, names))
    return PAGE.format(title=html.escape(printable(title)), lines=lines, cards=cards)


def _card(one: Answer, name: str) -> str:
    name = html.escape(printable(name))
    picture = base64.b64encode(one.thumbnail).decode()
    verdict = ""
    if one.label is not None:
        said = f"wrong: is {printable(one.label)}" if one.wrong else "right"
        verdict = f'<p class="{"wrong" if one.wrong else "right"}">{html.escape(said)}</p>'
    rows = "\n".join(
        f'<li><span style="--share:{100 * share:.1f}%">{html.escape(printable(label))}</span> '
        f"<b>{100 * share:.1f} %</b></li>"
        for label, share in zip(one.classes, one.probabilities, strict=True)
    )
    kind = ' class="is-wrong"' if one.wrong else ""
    return (
        f'<figure{kind}><img alt="" src="data:image/jpeg;base64,{picture}">'
        f"<figcaption>{name}</figcaption>{verdict}<ol>{rows}</ol></figure>"
    )


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
:root {{
  --page: #fdfdfb; --text: #1d2126; --quiet: #565d66; --lines: #d5d8dc; --box: #f3f4f1;
  --bar: #0b5cad33; --wrong: #b23c06; --right: #2b7430;
}}
@media (prefers-color-scheme: dark) {{
  :root {{
    --page: #14171b; --text: #e6e8eb; --quiet: #a4abb4; --lines: #3b424b; --box: #1d2228;
    --bar: #84bdf64d; --wrong: #f5a673; --right: #86d28b;
  }}
}}
* {{ box-sizing: border-box; }}
body {{
  margin: 0 auto; max-width: 90rem; padding: 2rem 1.25rem 3rem; background: var(--page);
  color: var(--text); font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}}
h1 {{ font-size: 1.6rem; line-height: 1.2; margin: 0 0 .5rem; overflow-wrap: anywhere; }}
p {{ margin: .2rem 0; max-width: 46rem; overflow-wrap: anywhere; }}
.quiet {{ color: var(--quiet); }}
main {{
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr));
  gap: 1rem; margin-top: 1.5rem;
}}
figure {{
  margin: 0; padding: .75rem; background: var(--box); border-radius: .4rem;
  border-left: .3rem solid var(--lines);
}}
figure.is-wrong {{ border-left-color: var(--wrong); }}
img {{ display: block; width: 100%; height: 10rem; object-fit: contain; }}
figcaption {{
  font-size: .8rem; color: var(--quiet); margin: .4rem 0 .2rem; overflow-wrap: anywhere;
}}
.wrong {{ color: var(--wrong); font-weight: 600; }}
.right {{ color: var(--right); font-weight: 600; }}
ol {{ list-style: none; margin: .4rem 0 0; padding: 0; font-size: .86rem; }}
li {{ display: flex; justify-content: space-between; gap: .5rem; margin: .15rem 0; }}
li span {{
  flex: 1; padding: 0 .3rem; overflow-wrap: anywhere;
  background: linear-gradient(to right, var(--bar) var(--share), transparent var(--share));
}}
b {{ font-weight: 500; font-variant-numeric: tabular-nums; white-space: nowrap; }}
</style>
</head>
<body>
<h1>{title}</h1>
{lines}
<main>
{cards}
</main>
</body>
</html>
"""
