import pytest

from mobilenext.errors import InputError
from mobilenext.optim import constant, cosine, step_decay

# The released 74.02 run, by epoch: 200 epochs of cosine and 10 of cool-down. From its log, which
# has 1.6e-5 for epoch 199.
OFFICIAL = {
    0: 1e-4, 1: 0.0334, 2: 0.0667, 3: 0.09994, 50: 0.0854, 100: 0.0500, 150: 0.01465,
    187: 0.00105, 199: 1.62e-5, 200: 1e-5, 209: 1e-5,
}  # fmt: skip
FRAME = {
    "base_lr": 0.1, "steps_per_epoch": 2502, "epochs": 210, "min_lr": 1e-5, "warmup_epochs": 3,
    "warmup_lr": 1e-4, "cooldown_epochs": 10, "every": "epoch",
}  # fmt: skip


@pytest.mark.parametrize(("epoch", "lr"), OFFICIAL.items())
def test_official_run(epoch: int, lr: float) -> None:
    first, last = 2502 * epoch, 2502 * (epoch + 1) - 1
    assert cosine(first, **FRAME) == pytest.approx(lr, rel=0.005)
    assert cosine(first, **FRAME) == cosine(last, **FRAME)


def test_cosine_by_step() -> None:
    def lr(step: int) -> float:
        return cosine(step, base_lr=1.0, steps_per_epoch=10, epochs=10)

    assert [lr(0), lr(50), lr(100)] == pytest.approx([1.0, 0.5, 0.0])
    rates = [lr(step) for step in range(101)]
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == 101


def test_warm_up_by_step_is_linear() -> None:
    rates = [
        cosine(s, base_lr=1.0, steps_per_epoch=4, epochs=8, warmup_epochs=2, warmup_lr=0.2)
        for s in range(8)
    ]
    assert rates == pytest.approx([0.2 + 0.1 * step for step in range(8)])


def test_step_decay_is_that_of_the_efficientnet_style_runs() -> None:
    def lr(epoch: int) -> float:
        return step_decay(
            epoch * 7, base_lr=0.12, steps_per_epoch=7, epochs=500, decay_rate=0.97,
            decay_epochs=2.4, warmup_epochs=3, warmup_lr=1e-6,
        )  # fmt: skip

    assert lr(0) == pytest.approx(1e-6)
    assert lr(1) == pytest.approx(0.04, rel=1e-3)
    assert lr(3) == pytest.approx(0.12 * 0.97)
    assert lr(24) == pytest.approx(0.12 * 0.97**10)
    assert lr(499) == pytest.approx(0.12 * 0.97**207)


def test_step_decay_stops_at_the_minimum() -> None:
    frame = {"base_lr": 1.0, "steps_per_epoch": 1, "epochs": 9, "decay_rate": 0.1}
    assert step_decay(8, decay_epochs=1, min_lr=0.01, **frame) == 0.01


@pytest.mark.parametrize(("rate", "epochs"), [(0.97, 0), (0.97, -1), (1.5, 1), (-0.5, 1)])
def test_refuses_a_decay_that_is_none(rate: float, epochs: float) -> None:
    with pytest.raises(InputError, match="decay_epochs above 0"):
        step_decay(
            0, base_lr=1.0, steps_per_epoch=1, epochs=9, decay_rate=rate, decay_epochs=epochs
        )


def test_constant() -> None:
    assert {constant(s, base_lr=0.3, steps_per_epoch=5, epochs=4) for s in range(20)} == {0.3}


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 10}, {"warmup_epochs": 201}, {"every": "second"}, {"cooldown_epochs": -1}],
)
def test_refuses_a_frame_that_does_not_fit(wrong: dict) -> None:
    with pytest.raises(InputError, match="schedule"):
        cosine(0, **{**FRAME, **wrong})
