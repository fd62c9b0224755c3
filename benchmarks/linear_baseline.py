"""Top-1 of a linear model on the pixels of class folders: what a network has to beat.

    python benchmarks/linear_baseline.py ROOT [--size 32] [--run RUN_FOLDER]

Multinomial logistic regression (scikit-learn) on standardised pixels of centre crops; the best of
a few strengths of regularisation, chosen on the validation images themselves, which flatters it.
With --run, prints that run's top-1 and the ratio.
"""

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mobilenext.data import eval_loader, eval_transform, image_folder
from mobilenext.data.sources import Images


def pixels(images: Images, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, size * size * 3) floats and labels."""
    transform = eval_transform(size, crop_ratio=1.0)
    batches = list(eval_loader(images, transform, batch_size=256, workers=1).epoch(0))
    inputs = np.concatenate([pixels.flatten(1).numpy() for pixels, _ in batches])
    return inputs.astype(np.float32), np.concatenate([labels.numpy() for _, labels in batches])


def main() -> None:  # noqa: D103
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("root")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--run", type=Path)
    arguments = parser.parse_args()
    data = image_folder(arguments.root)
    inputs, labels = pixels(data.train, arguments.size)
    val_inputs, val_labels = pixels(data.val, arguments.size)
    scaler = StandardScaler().fit(inputs)
    inputs, val_inputs = scaler.transform(inputs), scaler.transform(val_inputs)
    best = 0.0
    for strength in (1e-4, 1e-3, 1e-2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = LogisticRegression(C=strength, max_iter=100).fit(inputs, labels)
        top1 = 100 * float((model.predict(val_inputs) == val_labels).mean())
        print(f"logistic regression, {arguments.size} px, C={strength:g}: top-1 {top1:.2f} %")
        best = max(best, top1)
    if arguments.run is not None:
        result = json.loads((arguments.run / "result.json").read_text())
        print(
            f"{result['model']} width {result['width']:g}: top-1 {result['top1']:.2f} %, "
            f"{result['top1'] / best:.2f} times the linear model's {best:.2f} %"
        )


if __name__ == "__main__":
    main()
