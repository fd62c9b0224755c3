"""How a network is taken to 8 bits: the choices that decide what it loses."""

from dataclasses import dataclass

WEIGHTS = ("per_channel", "per_tensor")
GRIDS = ("symmetric", "affine")
OBSERVERS = ("histogram", "minmax", "percentile")


@dataclass(frozen=True)
class Scheme:
    """A way to 8 bits; activations are always on one affine grid for each tensor.

    Attributes:
        weights: per_channel (a scale for each output channel of a layer) or per_tensor (one).
        grid: Of the weights: symmetric (zero in its middle, -127 to 127) or affine (-128 to 127,
            with a zero point).
        observer: How the range of an activation is found: minmax (what was seen), histogram (where
            the squared error of rounding is least), percentile (all but one value in 100,000).
        equalize: Whether ranges of weights are evened out between successive layers before.
        correct_bias: Whether biases take up the mean error that rounded weights make.
        keep_float: Names of modules that stay in float32, with all that is in them.
    """

    weights: str = "per_channel"
    grid: str = "symmetric"
    observer: str = "histogram"
    equalize: bool = False
    correct_bias: bool = False
    keep_float: tuple[str, ...] = ()
