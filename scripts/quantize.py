"""Take a trained network to 8 bits: `python scripts/quantize.py checkpoint=... output=FOLDER`."""

from checkout import start

if __name__ == "__main__":
    start("quantize")
