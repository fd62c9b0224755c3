"""Write a trained network for the hub: `python scripts/export.py checkpoint=... output=FOLDER`."""

from checkout import start

if __name__ == "__main__":
    start("export")
