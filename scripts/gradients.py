"""Compare the gradients of single images: `python scripts/gradients.py data=... [models=[...]]`."""

from checkout import start

if __name__ == "__main__":
    start("gradients")
