"""Classifiers of timm and torchvision behind the interface of our networks."""

import difflib
from collections.abc import Sequence
from typing import Any

from torch import nn

from mobilenext.errors import InputError, first_line
from mobilenext.models.weights import fit_weights, shrink_classifier
from mobilenext.program import as_typed


def timm_model(
    model_name: str,
    width_mult: float = 1.0,
    identity_tensor_multiplier: float = 1.0,
    num_classes: int = 1000,
    strides: Sequence[int] = (2, 2, 2, 2, 2),
    **arguments: Any,
) -> nn.Module:
    """A network of timm, ours among them.

    Args:
        model_name: As `timm.list_models()` has it.
        width_mult: Has to be 1: timm's networks have their width in their name.
        identity_tensor_multiplier: Has to be 1.
        num_classes: Logits.
        strides: Have to be 2 each.
        **arguments: For `timm.create_model`: pretrained, drop_rate, drop_path_rate, img_size, ...
            With `pretrained`, a classifier for other classes than the published one's is new, see
            `shrink_classifier`.

    Raises:
        InputError: There is no such network, it does not take the arguments, or its weights can't
            be fetched.
    """
    import timm

    _check_knobs("timm's", model_name, width_mult, identity_tensor_multiplier, strides)
    if not timm.is_model(model_name.split(".")[0]):
        raise _unknown("timm", model_name, timm.list_models())
    try:
        network = timm.create_model(model_name, num_classes=num_classes, **arguments)
    except OSError as error:  # the hub's errors and those of connections are such
        raise _not_fetched("timm", model_name, "published", error) from error
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise InputError(f"timm's {model_name} can't be built with {arguments}: {error}") from error
    published: Any = getattr(network, "pretrained_cfg", None) or {}
    if arguments.get("pretrained") and published.get("num_classes") != num_classes:
        shrink_classifier(network)
    return network


def torchvision_model(
    model_name: str,
    width_mult: float = 1.0,
    identity_tensor_multiplier: float = 1.0,
    num_classes: int = 1000,
    strides: Sequence[int] = (2, 2, 2, 2, 2),
    pretrained: bool = False,
    **arguments: Any,
) -> nn.Module:
    """A classifier of torchvision, without auxiliary outputs.

    Args:
        model_name: As `torchvision.models.list_models(torchvision.models)` has it.
        width_mult: Has to be 1; for the networks that have one, give theirs in `arguments`.
        identity_tensor_multiplier: Has to be 1.
        num_classes: Logits.
        strides: Have to be 2 each.
        pretrained: Fetch torchvision's default weights for it; the classifier keeps random ones
            where the classes are not 1,000.
        **arguments: For the network: dropout, stochastic_depth_prob, ...

    Raises:
        InputError: There is no such network, or it does not take the arguments.
    """
    import torchvision

    _check_knobs("torchvision's", model_name, width_mult, identity_tensor_multiplier, strides)
    names = torchvision.models.list_models(module=torchvision.models)
    if model_name not in names:
        raise _unknown("torchvision", model_name, names)
    builder = torchvision.models.get_model_builder(model_name)
    if model_name in ("googlenet", "inception_v3"):
        arguments = {"aux_logits": False, "init_weights": True, **arguments}
    try:
        network = builder(weights=None, num_classes=num_classes, **arguments)
    except (TypeError, ValueError) as error:
        message = f"torchvision's {model_name} can't be built with {arguments}: {error}"
        raise InputError(message) from error
    if pretrained:
        _load_default_weights(network, model_name)
    return network


def _load_default_weights(network: nn.Module, model_name: str) -> None:
    import torchvision

    try:
        weights = torchvision.models.get_model_weights(model_name)["DEFAULT"]
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (KeyError, OSError) as error:
        raise _not_fetched("torchvision", model_name, "default", error) from error
    own = network.state_dict()
    fitted = fit_weights({name: value for name, value in state.items() if name in own}, network)
    if fitted.classifier_left_out:
        shrink_classifier(network)
    network.load_state_dict({**own, **fitted.tensors})


def _not_fetched(library: str, model_name: str, which: str, error: Exception) -> InputError:
    return InputError(
        f"{library}'s {model_name}: could not fetch its {which} weights ({first_line(error)}); "
        "fetch them where there is a network, and give the file with init_from=FILE"
    )


def _check_knobs(
    whose: str, name: str, width: float, identity: float, strides: Sequence[int]
) -> None:
    wrong = []
    if width != 1:
        wrong.append(f"width=1, got {width:g}")
    if identity != 1:
        wrong.append(f"identity=1, got {identity:g}")
    if list(strides) != [2, 2, 2, 2, 2]:
        wrong.append(f"strides=[2,2,2,2,2], got {as_typed(strides)} (perhaps by the data's recipe)")
    if wrong:
        raise InputError(f"{whose} {name} has no such knob: expected {', '.join(wrong)}")


def _unknown(library: str, name: str, names: list[str]) -> InputError:
    near = difflib.get_close_matches(name, names, n=5)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    return InputError(f"model.name={name}: {library} has no such network{hint}")
