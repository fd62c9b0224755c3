"""Parameter groups and schedules. Knows nothing of networks, data or configs."""

from mobilenext.optim.param_groups import set_learning_rate, weight_decay_groups
from mobilenext.optim.schedules import constant, cosine, milestones, step_decay

__all__ = [
    "constant",
    "cosine",
    "milestones",
    "set_learning_rate",
    "step_decay",
    "weight_decay_groups",
]
