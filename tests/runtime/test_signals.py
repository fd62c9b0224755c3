import os
import signal
import threading
import time

import pytest

from mobilenext.runtime.signals import StopSignals

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


def test_the_first_signal_is_noted_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StopSignals, "unheeded", None)
    before = signal.getsignal(signal.SIGUSR1)
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGINT)  # at once: the same wish, passed on
        for _ in range(200):
            if signals.received:
                break
            time.sleep(0.01)
        assert signals.received == "SIGUSR1"
    assert signal.getsignal(signal.SIGUSR1) == before
    # the block ended well, so whoever has more to do should know
    assert StopSignals.unheeded == "SIGUSR1"


def test_the_first_signal_is_answered_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(StopSignals, "unheeded", None)
    with StopSignals("it ends soon") as signals:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        until = time.monotonic() + 10
        while "soon" not in (said := capsys.readouterr().err) and time.monotonic() < until:
            time.sleep(0.01)
        assert signals.received == "SIGINT"
    assert said == "\nSIGINT: it ends soon\n"


def test_another_thread_leaves_signals_alone() -> None:
    found = []

    def enter() -> None:
        with StopSignals() as signals:
            found.append(signals.received)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [None]


@pytest.mark.parametrize("order", [("SIGTERM", "SIGUSR2"), ("SIGUSR2", "SIGTERM")])
def test_slurm_may_send_two_signals(
    monkeypatch: pytest.MonkeyPatch, order: tuple[str, str]
) -> None:
    """However far apart: neither ends the process at once, and SIGUSR2 is the one that counts."""
    monkeypatch.setattr(StopSignals, "unheeded", None)
    monkeypatch.setattr("mobilenext.runtime.signals.ONE_WISH_SECONDS", 0.0)
    with StopSignals() as signals:
        for name in order:
            signal.raise_signal(signal.Signals[name])
            time.sleep(0.1)
        assert signals.received == "SIGUSR2"
