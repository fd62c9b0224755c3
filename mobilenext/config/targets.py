"""Tables of the callables that a config node may name, compared by identity.

A list of path prefixes can't keep code out: a module also reaches whatever it has imported itself
(`mobilenext.models.libraries.timm.models._helpers.load_state_dict`), and walking a path imports
modules. So a name is looked up in a few modules that stand here, only public names count, and what
is found has to be of the kind that stands beside the module. Nodes that come out of a file get the
narrower table: nothing that reads weights, files or addresses of the file's choice, and arguments
within bounds.
"""

import functools
import importlib
import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from mobilenext.errors import InputError, UserError
from mobilenext.plain import check_plain
from mobilenext.program import as_typed

MODULE, OPTIMIZER = "torch.nn.Module", "torch.optim.Optimizer"

REFUSED_IN_FILES = ("cache_dir", "checkpoint_path", "device", "download", "dtype", "exportable",
                    "feature_cls", "features_only", "kwargs_filter", "model_dir", "no_jit",
                    "out_indices", "pruned", "scriptable", "weights",
                    "weights_backbone")  # fmt: skip
"""Arguments that mean weights, downloads, places or generated code, besides `pretrained...`."""

MOST_MODULES = 20_000
"""Modules of a network out of a file, the largest of timm's have some thousand."""
LARGEST = 65_536
LARGEST_BY_NAME = {
    "width_mult": 10,
    "depth_mult": 10,
    "repeats": 100,
    "depth": 1_000,
    "depths": 1_000,
    "num_layers": 1_000,
    "num_classes": 1 << 20,
    "image_size": 2_048,
    "train_images": 1 << 24,
    "val_images": 1 << 24,
}
"""Bounds of numbers in nodes that come out of a file; `LARGEST` holds for the others."""


@dataclass(frozen=True)
class Family:
    """Callables of one module that a node may name.

    Attributes:
        module: Where they are exported. A name may also spell the module that defines the callable,
            if that lies inside of it.
        names: Exactly these.
        base: Also all public classes that are defined inside of it and derive from this one.
        registered: Also the functions whose names this accepts.
        homes: If given, classes have to be defined in files of these names.
    """

    module: str
    names: tuple[str, ...] = ()
    base: str | None = None
    registered: Callable[[str], bool] | None = None
    homes: tuple[str, ...] = ()

    def find(self, path: str) -> Callable[..., Any] | None:
        """The callable of that name, or None if it is not one of these."""
        name = path.rpartition(".")[2]
        if not path.startswith(f"{self.module}.") or "._" in path:
            return None
        found = getattr(importlib.import_module(self.module), name, None)
        if not (inspect.isclass(found) or inspect.isfunction(found)):
            return None
        home = f"{found.__module__}."
        if path not in (f"{self.module}.{name}", f"{home}{found.__qualname__}"):
            return None
        if name in self.names:
            return found
        if not home.startswith(f"{self.module}."):
            return None
        if inspect.isclass(found):
            at_home = not self.homes or found.__module__.rpartition(".")[2] in self.homes
            of_kind = self.base is not None and issubclass(found, _object(self.base))
            return found if at_home and of_kind else None
        return found if self.registered is not None and self.registered(name) else None


def _object(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _is_timm_model(name: str) -> bool:
    import timm

    return timm.is_model(name)


def _is_torchvision_model(name: str) -> bool:
    import torchvision

    return name in torchvision.models.list_models(module=torchvision.models)


TIMM_MODELS = Family("timm.models", registered=_is_timm_model)
TORCHVISION_MODELS = Family("torchvision.models", registered=_is_torchvision_model)
OURS = (
    Family("mobilenext.models", ("mnext_l", "mnext_s", "Stage", "timm_model", "torchvision_model"),
           base=MODULE),
    Family("mobilenext.models.layers", ("initialize", "initialize_by_fan_out", "relu6")),
    Family("mobilenext.models.efficientnet", ("silu", "tensorflow_norm")),
    Family("timm", ("create_model",)),
    TIMM_MODELS,
    TORCHVISION_MODELS,
)  # fmt: skip
LAYERS = (
    Family("torch.nn", base=MODULE),
    Family("timm.layers", base=MODULE),
    Family("torchvision.ops", base=MODULE),
)
PARTS = (
    Family("torch.nn", base=MODULE,
           homes=("activation", "batchnorm", "dropout", "instancenorm", "linear", "normalization")),
    Family("timm.layers", base=MODULE,
           homes=("activations", "drop", "eca", "evo_norm", "filter_response_norm", "norm",
                  "norm_act", "squeeze_excite")),
    Family("torchvision.ops", ("FrozenBatchNorm2d", "SqueezeExcitation", "StochasticDepth")),
)  # fmt: skip
"""Parts that a network out of a file may have: norms, activations and the like.

Not all modules. Some set any attribute (ParameterDict), some make many copies of a part
(TransformerEncoder), and some make much of little (Upsample, ZeroPad2d).
"""
SOURCES = (
    Family("mobilenext.data",
           ("cifar10", "coco", "digits", "image_folder", "imagenet", "imagenette", "synthetic",
            "voc")),
)  # fmt: skip
OPTIMIZATION = (
    Family("mobilenext.optim", ("constant", "cosine", "milestones", "step_decay")),
    Family("torch.optim", base=OPTIMIZER),
    Family("timm.optim", base=OPTIMIZER),
)


@dataclass(frozen=True)
class Table:
    """Callables that nodes from one origin may name."""

    families: tuple[Family, ...]
    expected: str
    """Description of these callables, for messages."""
    of_files: bool = False
    """Whether nodes come out of a file that anybody may have written."""
    confined: bool = False
    """Whether what they build has no need to read classes, connect or write; see `confined`."""


COMMAND_LINE = Table(
    (*OURS, *LAYERS, *SOURCES, *OPTIMIZATION),
    "a network or block of mobilenext.models, torchvision.models or timm (timm.create_model), a "
    "layer of torch.nn, timm.layers or torchvision.ops, a data source of mobilenext.data, an "
    "optimiser of torch.optim or timm.optim, or a schedule of mobilenext.optim",
)
STORED_NETWORKS = Table(
    (*OURS, *PARTS),
    "in a file a network or block of mobilenext.models, torchvision.models or timm, or a norm, an "
    "activation or the like of torch.nn, timm.layers or torchvision.ops",
    of_files=True,
    confined=True,
)
DATA_SOURCES = Table(SOURCES, "a data source of mobilenext.data")
STORED_SOURCES = Table(SOURCES, DATA_SOURCES.expected, of_files=True)


def build(node: dict[str, Any], table: Table = COMMAND_LINE, **arguments: Any) -> Any:
    """Call the `_target_` of a config node, if it is in the table.

    With `_partial_: true`, returns a `functools.partial` of it instead. Nested nodes are built
    first. (Hydra's own `instantiate` would wrap the arguments, parameter groups for instance, in
    its containers, and would import what the name says.)

    Args:
        node: `_target_`, `_partial_` and the arguments.
        table: What may be called.
        **arguments: Further arguments that only the caller knows.

    Raises:
        InputError: The target is not in the table, does not take the arguments, or, for nodes out
            of a file, an argument is refused or out of bounds.
    """
    if not table.of_files:
        return _build(node, table, arguments)
    check_plain(node, "the arguments of a network")
    _check_bounds(node)
    _load_targets(node, table)
    for name in BUILDERS:
        _object(name)
    with confined() if table.confined else nullcontext():
        return _build(node, table, arguments)


def _load_targets(value: Any, table: Table) -> None:
    """Load the libraries that a node's targets lie in: what a first import does is not confined."""
    if isinstance(value, dict):
        if "_target_" in value:
            _find(str(value["_target_"]), table)
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            _load_targets(item, table)


def _build(node: dict[str, Any], table: Table, arguments: dict[str, Any]) -> Any:
    name = str(node["_target_"])
    values = {key: value for key, value in node.items() if key not in ("_target_", "_partial_")}
    target = _find(name, table)
    if table.of_files:
        target, values = _without_weights(name, target, values)
    given = {key: _build_nested(value, table) for key, value in values.items()} | arguments
    _check_arguments(name, target, given)
    if node.get("_partial_"):
        return partial(target, **given)
    failures = Exception if table.of_files else (TypeError, ValueError)
    try:
        return target(**given)
    except UserError:
        raise
    except failures as error:
        raise InputError(
            f"{name} did not take {as_typed(values)}: {error or type(error).__name__}"
        ) from error


def _build_nested(value: Any, table: Table) -> Any:
    if isinstance(value, list | tuple):
        return [_build_nested(item, table) for item in value]
    if isinstance(value, dict):
        if "_target_" in value:
            return _check_nested(_build(value, table, {}), value["_target_"], table)
        return {key: _build_nested(item, table) for key, item in value.items()}
    return value


def _check_nested(built: Any, name: Any, table: Table) -> Any:
    """Refuse arguments that no network needs; modules, their makers and plain values pass."""
    allowed = (_object(MODULE), partial, tuple)
    if table.of_files and not isinstance(built, allowed):
        raise InputError(f"_target_={name}: expected a module as an argument, got {type(built)}")
    return built


def _find(name: str, table: Table) -> Callable[..., Any]:
    for family in table.families:
        found = family.find(name)
        if found is not None:
            return found
    raise InputError(f"_target_={name} is not allowed: expected {table.expected}")


def _check_arguments(name: str, target: Callable[..., Any], given: dict[str, Any]) -> None:
    parameters = inspect.signature(target).parameters
    unknown = sorted(given.keys() - parameters.keys())
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if unknown and not takes_any:
        raise InputError(
            f"{name} has no argument {', '.join(unknown)}; it takes {', '.join(parameters)}"
        )
    for key, value in given.items():
        if isinstance(parameters[key].default if key in parameters else None, bool) and (
            not isinstance(value, bool)
        ):
            raise InputError(f"{name}: {key}={as_typed(value)}: expected true or false")


# ---- nodes out of files ----


BUILDERS = {
    "timm.create_model": "timm_model",
    "mobilenext.models.timm_model": "timm_model",
    "mobilenext.models.torchvision_model": "torchvision_model",
}
"""Builders of other libraries' networks, and those of ours that stand for them."""


def _without_weights(
    name: str, target: Callable[..., Any], values: dict[str, Any]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The target and its arguments, without what would read weights: those are the file's own.

    Builders of other libraries' networks become guarded ones, which look at their arguments when
    they are called: parts of a network call partials of them with arguments of their own.

    Raises:
        InputError: An argument means other weights, or a place.
    """
    _refuse_weights(name, values)
    if isinstance(values.get("pretrained"), bool):
        values = {key: value for key, value in values.items() if key != "pretrained"}
    builders: dict[Any, tuple[str, tuple[str, ...]]] = {
        _object(builder): (ours, ()) for builder, ours in BUILDERS.items()
    }
    model_name = name.rpartition(".")[2]
    if TIMM_MODELS.find(name) is target:
        builders[target] = ("timm_model", (model_name,))
    elif TORCHVISION_MODELS.find(name) is target:
        builders[target] = ("torchvision_model", (model_name,))
    if target in builders:
        ours, given = builders[target]
        target = _guarded(_object(f"mobilenext.models.{ours}"), given)
    return target, values


def _guarded(builder: Callable[..., Any], given: tuple[str, ...]) -> Callable[..., Any]:
    """A builder that refuses, at each call, arguments that mean weights or places."""

    @functools.wraps(builder)
    def guarded(*positional: Any, **arguments: Any) -> Any:
        _refuse_weights(builder.__name__, arguments)
        kept = {key: value for key, value in arguments.items() if key != "pretrained"}
        return builder(*positional, **kept)

    return partial(guarded, *given) if given else guarded


def _refuse_weights(name: str, values: Any, levels: int = 0) -> None:
    if isinstance(values, dict):
        refused = [key for key, value in values.items() if _means_weights(key, value, levels)]
        if refused:
            raise InputError(
                f"{name}: expected a network's own arguments in a file, got {', '.join(refused)}: "
                "the weights are those of the file itself, and nothing else is read"
            )
    inner = values.values() if isinstance(values, dict) else values
    if isinstance(values, dict | list | tuple):
        for value in inner:
            _refuse_weights(name, value, levels + 1)


def _means_weights(key: str, value: Any, levels: int) -> bool:
    """Whether an argument names weights or places; at the top `pretrained` is only left out."""
    if key == "pretrained" and levels == 0:
        return not isinstance(value, bool)
    return key.startswith("pretrained") or (key in REFUSED_IN_FILES and value not in (None, False))


def _check_bounds(value: Any, key: str = "") -> None:
    """Raise `InputError` unless the names and numbers of a node out of a file are reasonable."""
    if isinstance(value, dict):
        for name, item in value.items():
            if not name.isidentifier():
                raise InputError(f"expected names of arguments in a file, got {name!r}")
            _check_bounds(item, name)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_bounds(item, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        most = LARGEST_BY_NAME.get(key, LARGEST)
        if not -most <= value <= most:
            shown = value if isinstance(value, float) or abs(value) < 1 << 60 else "(huge)"
            raise InputError(f"{key}={shown}: expected a number of at most {most} in a file")


FORBIDDEN_EVENTS = frozenset(
    {"os.chmod", "os.exec", "os.fork", "os.link", "os.mkdir", "os.posix_spawn", "os.remove",
     "os.rename", "os.rmdir", "os.spawn", "os.symlink", "os.system", "os.truncate",
     "pickle.find_class", "shutil.rmtree", "socket.bind", "socket.connect", "socket.getaddrinfo",
     "subprocess.Popen", "urllib.Request"}
)  # fmt: skip
_confinement = threading.local()


@contextmanager
def confined() -> Iterator[None]:
    """A second wall behind the table: this thread may not do inside what no network needs.

    Python tells audit hooks of programs that are started, connections, classes that are unpickled
    and files that are opened for writing.
    """
    _install_audit()
    before = getattr(_confinement, "active", False), sys.dont_write_bytecode
    # A module that is imported inside is compiled, and would be written beside its source.
    _confinement.active, sys.dont_write_bytecode = True, True
    try:
        yield
    finally:
        _confinement.active, sys.dont_write_bytecode = before


@functools.cache
def _install_audit() -> None:
    """Once: a hook can't be removed."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if getattr(_confinement, "active", False) and (
            event in FORBIDDEN_EVENTS or (event == "open" and _writes(arguments))
        ):
            raise InputError(f"a network out of a file tried what no network needs ({event})")

    sys.addaudithook(hook)


def _writes(arguments: tuple[Any, ...]) -> bool:
    """Whether an `open` event (path, mode, flags) is for writing."""
    flags = arguments[2] if len(arguments) > 2 and isinstance(arguments[2], int) else 0
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))


@contextmanager
def allocating_at_most(elements: int) -> Iterator[None]:
    """Refuse to make tensors of more than so many elements, or too many modules, inside.

    A file of a few bytes may describe a network that fills the memory. Sizes are asked for on the
    meta device before anything is allocated.

    Raises:
        InputError: More than that was asked for.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    factories = {torch.arange, torch.empty, torch.eye, torch.full, torch.linspace, torch.ones,
                 torch.rand, torch.randn, torch.zeros}  # fmt: skip

    class Bounded(TorchFunctionMode):
        left = elements

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            if func in factories:
                self.left -= func(*args, **{**kwargs, "device": "meta"}).numel()
                if self.left < 0:
                    raise InputError(
                        f"expected a network of about {elements:,} values at most, as the file has "
                        "weights for, got the description of a larger one"
                    )
            return func(*args, **kwargs)

    modules = 0

    def count(*_: object) -> None:
        nonlocal modules
        modules += 1
        if modules > MOST_MODULES:
            raise InputError(f"expected a network of at most {MOST_MODULES:,} modules, got more")

    counting = torch.nn.modules.module.register_module_module_registration_hook(count)
    try:
        with Bounded():
            yield
    finally:
        counting.remove()
