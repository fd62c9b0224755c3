"""How parameters move: groups and schedules. Knows nothing of networks, data or configs."""

from mobilenext.optim.param_groups import weight_decay_groups
from mobilenext.optim.schedules import constant, cosine, step_decay

__all__ = ["constant", "cosine", "step_decay", "weight_decay_groups"]
