"""Compare the gradients of single images: `python scripts/gradients.py data=... [models=[...]]`."""

from mobilenext.gradients import gradients
from mobilenext.main import launch

if __name__ == "__main__":
    launch(gradients, config_name="gradients", positional="runs")
