"""Compare the gradients of single images: `python scripts/gradients.py data=... [models=[...]]`."""

from mobilenext.jobs.gradients import GradientsConfig, gradients
from mobilenext.main import launch

if __name__ == "__main__":
    launch(gradients, GradientsConfig, "gradients")
