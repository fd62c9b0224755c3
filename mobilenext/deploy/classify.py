"""Classify pictures with the exported network beside this file.

    python classify.py PICTURE [PICTURE ...]

Needs Python, numpy, Pillow and what runs the network: onnxruntime for model.onnx, torch for
model.pt2, executorch for model.pte. It is a whole example of how pixels are made and read; change
it as you like.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = Path(__file__).resolve().parent
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def pixels(path, how):
    """The picture as the network takes it: uint8 (1, 3, image_size, image_size), RGB."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    short, size = min(image.size), how["image_size"]
    width, height = (side * how["short_side"] // short for side in image.size)
    image = image.resize((width, height), FILTERS[how["interpolation"]])
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.crop((left, top, left + size, top + size))
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)[None])


def network():
    """A function from pixels to logits (1, number of classes), of the file that lies here."""
    if (FOLDER / "model.onnx").exists():
        import onnxruntime

        session = onnxruntime.InferenceSession(
            str(FOLDER / "model.onnx"), providers=["CPUExecutionProvider"]
        )
        return lambda batch: session.run(None, {"pixels": batch})[0]

    import torch

    if (FOLDER / "model.pte").exists():
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(FOLDER / "model.pte")
        method = program.load_method("forward")
        assert method is not None
        return lambda batch: method.execute([torch.from_numpy(batch)])[0].numpy()
    module = torch.export.load(FOLDER / "model.pt2").module()
    return lambda batch: module(torch.from_numpy(batch)).detach().numpy()


def main():
    """Print the five most probable classes of each picture."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    how = json.loads((FOLDER / "preprocessing.json").read_text(encoding="utf-8"))
    run = network()
    for path in sys.argv[1:]:
        logits = np.asarray(run(pixels(path, how)), dtype=np.float64)[0]
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        best = np.argsort(-shares)[:5]
        answers = ", ".join(f"{how['classes'][i]} {100 * shares[i]:.2f} %" for i in best)
        sys.stdout.write(f"{path}: {answers}\n")


if __name__ == "__main__":
    main()
