"""Find objects in pictures with the exported detector beside this file, and draw boxes.

    python find_objects.py [NETWORK] PICTURE [PICTURE ...] [--least SCORE]

NETWORK is model.onnx, model.pte or model.pt2, by default the one beside this file. For each picture
it prints what was found with a score from SCORE on (0.3), x0, y0, x1, y1 in pixels, and writes
PICTURE-boxes.png into the current folder.

Needs Python, numpy, Pillow and what runs the network: onnxruntime for model.onnx, torch for
model.pt2, executorch for model.pte. It is a whole example of how pixels are made, and of how
objects are chosen from scores and boxes; change it as you like.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

NETWORKS = ("model.onnx", "model.pte", "model.pt2")
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
COLOURS = ("#ff5555", "#55dd55", "#6699ff", "#ffcc33", "#ff66dd", "#33dddd", "#ff9944", "#bb88ff")


def pixels(image, how):
    """The picture as the network takes it: uint8 (1, 3, image_size, image_size), RGB."""
    square = image.resize((how["image_size"], how["image_size"]), FILTERS[how["interpolation"]])
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1)[None])


def network(path):
    """A function from pixels to scores (1, A, 1 + number of classes) and boxes (1, A, 4)."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda batch: session.run(["scores", "boxes"], {"pixels": batch})

    import torch

    if path.suffix == ".pte":
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(path)
        method = program.load_method("forward")
        assert method is not None
        return lambda batch: [one.numpy() for one in method.execute([torch.from_numpy(batch)])]
    module = torch.export.load(path).module()
    return lambda batch: [one.detach().numpy() for one in module(torch.from_numpy(batch))]


def kept(boxes, most_overlap):
    """Non-maximum suppression: places of the boxes (n, 4) that stay, the surest come first."""
    left, top, right, bottom = boxes.T
    areas = (right - left) * (bottom - top)
    places, rest = [], np.arange(len(boxes))
    while len(rest):
        best, rest = rest[0], rest[1:]
        places.append(best)
        width = np.minimum(right[best], right[rest]) - np.maximum(left[best], left[rest])
        height = np.minimum(bottom[best], bottom[rest]) - np.maximum(top[best], top[rest])
        common = width.clip(0) * height.clip(0)
        union = np.maximum(areas[best] + areas[rest] - common, 1e-12)
        rest = rest[common / union <= most_overlap]
    return np.array(places, int)


def detections(scores, boxes, how):
    """What is found, the surest first: boxes (n, 4) in [0, 1], scores (n,), labels (n,).

    Args:
        scores: (A, 1 + number of classes), the background first.
        boxes: (A, 4), x0, y0, x1, y1 in [0, 1].
        how: The entry "postprocessing" of preprocessing.json.
    """
    found = []
    for label in range(scores.shape[1] - 1):
        mine = scores[:, 1 + label]
        order = np.argsort(-mine, kind="stable")[: how["candidates"]]
        order = order[mine[order] > how["score_threshold"]]
        order = order[kept(boxes[order], how["nms_threshold"])]
        found += [(mine[place], label, place) for place in order]
    found = sorted(found, key=lambda one: -one[0])[: how["most"]]
    places = [place for _, _, place in found]
    return (
        boxes[places].reshape(-1, 4), np.array([score for score, _, _ in found]),
        np.array([label for _, label, _ in found], int),
    )  # fmt: skip


def draw(image, rows):
    """Draw boxes on a picture, each with a word: rows are x0, y0, x1, y1, text, label."""
    pen, line = ImageDraw.Draw(image), max(2, min(image.size) // 200)
    for x0, y0, x1, y1, text, label in reversed(rows):
        colour = COLOURS[label % len(COLOURS)]
        pen.rectangle((x0, y0, x1, y1), outline=colour, width=line)
        left, top, right, bottom = pen.textbbox((x0 + line, y0 + line), text)
        pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), fill=colour)
        pen.text((x0 + line, y0 + line), text, fill="black")


def main():
    """Print what is in each picture, and write it with boxes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", metavar="[NETWORK] PICTURE", help=argparse.SUPPRESS)
    parser.add_argument("--least", type=float, default=0.3, help="least score that is shown")
    given = parser.parse_args()
    pictures = [Path(name) for name in given.files]
    folder = Path(__file__).resolve().parent
    file = next((folder / name for name in NETWORKS if (folder / name).exists()), None)
    if pictures[0].suffix in (".onnx", ".pte", ".pt2"):
        file = pictures.pop(0)
    if file is None or not pictures:
        parser.error("expected a network, given or beside this file, and a picture")
    how = json.loads((file.resolve().parent / "preprocessing.json").read_text(encoding="utf-8"))
    run = network(file)
    for path in pictures:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        scores, boxes = (np.asarray(one)[0] for one in run(pixels(image, how)))
        boxes, scores, labels = detections(scores, boxes, how["postprocessing"])
        boxes = boxes * [image.width, image.height, image.width, image.height]
        rows = [
            (*box, f"{how['classes'][label]} {score:.3f}", label)
            for box, score, label in zip(
                boxes.tolist(), scores.tolist(), labels.tolist(), strict=True
            )
            if score >= given.least
        ]
        for x0, y0, x1, y1, text, _ in rows:
            sys.stdout.write(f"{path}: {text}  {x0:.1f} {y0:.1f} {x1:.1f} {y1:.1f}\n")
        draw(image, rows)
        image.save(f"{path.stem}-boxes.png")
        sys.stdout.write(f"{path.stem}-boxes.png: {path}, {len(rows)} found\n")


if __name__ == "__main__":
    main()
