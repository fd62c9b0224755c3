"""What the fork server of `commands` does beside its imports: Hydra's first config."""

import gc

from hydra import compose, initialize_config_dir

from mobilenext.config import register
from mobilenext.main import CONFIG_DIR
from mobilenext.start import find_schema

register(find_schema("train"))
with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
    compose("train")

gc.collect()
gc.freeze()  # a fork that searched all this for garbage would copy it
