import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from mobilenext.errors import InputError
from mobilenext.runtime.checkpoint import (
    load_checkpoint,
    load_into,
    load_weights,
    save_checkpoint,
    save_weights,
)

DESCRIBED = {"model": {"name": "tiny"}, "classes": ["a", "b"], "data": {"name": "none"}}


def state(**more: object) -> dict:
    network = nn.Linear(3, 2)
    return {**DESCRIBED, "network": network.state_dict(), "ema": None, **more}


def test_round_trip(tmp_path: Path) -> None:
    path, saved = tmp_path / "last.pt", state(step=7, scores={"val": {"top1": 1.5}})
    save_checkpoint(path, saved)
    loaded = load_checkpoint(path)
    assert (loaded["step"], loaded["scores"]) == (7, {"val": {"top1": 1.5}})
    assert torch.equal(loaded["network"]["weight"], saved["network"]["weight"])
    tensors, described = load_weights(path)
    assert described == DESCRIBED
    assert tensors.keys() == saved["network"].keys()


def test_averaged_weights_come_first(tmp_path: Path) -> None:
    averages = nn.Linear(3, 2).state_dict()
    save_checkpoint(tmp_path / "last.pt", state(ema=averages))
    tensors, _ = load_weights(tmp_path / "last.pt")
    assert torch.equal(tensors["weight"], averages["weight"])


def test_final_weights_say_what_they_are(tmp_path: Path) -> None:
    network = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    path = tmp_path / "model.safetensors"
    save_weights(path, network, DESCRIBED)
    tensors, described = load_weights(path)
    assert described == DESCRIBED
    assert torch.equal(tensors["weight"], network.weight)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/mobilenext-was-here"),))


def test_foreign_files_cannot_run_code(tmp_path: Path) -> None:
    marker = Path("/tmp/mobilenext-was-here")
    marker.unlink(missing_ok=True)
    torch.save({"format": 1, "model": {}, "x": Evil()}, tmp_path / "evil.pt")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.pt", "evil.pkl"):
        with pytest.raises(InputError, match="tensors and plain values"):
            load_checkpoint(tmp_path / name)
    assert not marker.exists()


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    good = tmp_path / "good.pt"
    save_checkpoint(good, state())
    bad = tmp_path / "bad.pt"
    for content in (b"", b"hello", good.read_bytes()[:-200], good.read_bytes()[:200]):
        bad.write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.pt: expected a checkpoint"):
            load_checkpoint(bad)
    with pytest.raises(InputError, match=r"got a folder; a run has .*best\.pt"):
        load_checkpoint(tmp_path)
    torch.save({"weight": torch.zeros(1)}, bad)
    with pytest.raises(InputError, match="got something else"):
        load_checkpoint(bad)
    with pytest.raises(InputError, match="found none there"):
        load_weights(tmp_path / "nowhere.pt")
    with pytest.raises(InputError, match="found none there"):
        load_weights(tmp_path / "nowhere.safetensors")
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(1)}, foreign)
    with pytest.raises(InputError, match="does not say which network"):
        load_weights(foreign)
    foreign.write_bytes(b"12345678901234567890")
    with pytest.raises(InputError, match="could not read it"):
        load_weights(foreign)


def test_weights_of_another_network() -> None:
    with pytest.raises(InputError, match=r"expected the weights of the Linear .*size mismatch"):
        load_into(nn.Linear(3, 2), nn.Linear(3, 4).state_dict(), Path("x.pt"))


def test_a_full_disk_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, state(step=1))

    def fail(content: object, file) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(InputError, match=r"No space left.*Make room"):
        save_checkpoint(path, state(step=2))
    assert load_checkpoint(path)["step"] == 1
    assert list(tmp_path.iterdir()) == [path]
