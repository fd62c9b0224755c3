"""Train a network: `python train.py model=mobilenext width=1.0`, also under torchrun.

`python train.py --help` lists the choices, README.md the ways of use.
"""

from mobilenext.start import start

if __name__ == "__main__":
    start("train")
