"""The typed contract between YAML, the command line and the code; knows no job.

Each job has a dataclass on top of its file in `mobilenext.jobs`; the groups that jobs share stand
here. Hydra checks names and types against them, `__post_init__` checks what one value has to do
with another, and `typed` turns the composed config into these objects once. What a constructor's
own signature describes (network, optimiser, schedule, data source) stays a plain dict with a
`_target_`, which `targets.build` calls if it is in one of its tables.
"""

from mobilenext.config.detection import DetectConfig
from mobilenext.config.groups import (
    AugmentConfig,
    BoxAugmentConfig,
    CheckpointConfig,
    DataConfig,
    DetectorConfig,
    ModelConfig,
    RuntimeConfig,
)
from mobilenext.config.run import HasRun, fingerprint
from mobilenext.config.schemas import (
    from_plain,
    is_text,
    is_text_list,
    is_word_list,
    register,
    to_plain,
    to_yaml,
    typed,
)
from mobilenext.config.search import SearchConfig, SpaceConfig
from mobilenext.config.training import LoopConfig, TrainConfig

__all__ = [
    "AugmentConfig",
    "BoxAugmentConfig",
    "CheckpointConfig",
    "DataConfig",
    "DetectConfig",
    "DetectorConfig",
    "HasRun",
    "LoopConfig",
    "ModelConfig",
    "RuntimeConfig",
    "SearchConfig",
    "SpaceConfig",
    "TrainConfig",
    "fingerprint",
    "from_plain",
    "is_text",
    "is_text_list",
    "is_word_list",
    "register",
    "to_plain",
    "to_yaml",
    "typed",
]
