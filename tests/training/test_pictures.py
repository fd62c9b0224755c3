import subprocess
import sys

import numpy as np
import pytest
import torch

from mobilenext.training.pictures import GAP, LEAST_WIDTH, LINE, contact_sheet


def test_pictures_in_rows_with_captions() -> None:
    pictures = torch.stack([torch.full((150, 200, 3), 10 * n, dtype=torch.uint8) for n in range(6)])
    sheet = contact_sheet(pictures, ["cat", "", "", "", "", "dog\nelk"])
    below = 2 * LINE + GAP
    assert sheet.shape == (GAP + 2 * (150 + below), GAP + 4 * (200 + GAP), 3)
    for number in range(6):
        top = GAP + number // 4 * (150 + below)
        left = GAP + number % 4 * (200 + GAP)
        assert (sheet[top : top + 150, left : left + 200] == 10 * number).all()
        caption = sheet[top + 150 : top + 150 + below, left : left + 200] < 128
        assert caption[: LINE + 1].any() == (number in (0, 5))
        assert caption[LINE + 1 :].any() == (number == 5)


def test_small_pictures_are_enlarged_whole_times() -> None:
    picture = torch.randint(0, 256, (1, 8, 8, 3), dtype=torch.uint8)
    sheet = contact_sheet(picture, ["7"])
    side = LEAST_WIDTH
    large = picture[0].numpy().repeat(side // 8, 0).repeat(side // 8, 1)
    assert np.array_equal(sheet[GAP : GAP + side, GAP : GAP + side], large)


@pytest.mark.parametrize("name", ["W" * 500, "église 鸟 🐟"])
def test_any_name_stays_below_its_picture(name: str) -> None:
    pictures = torch.zeros(2, 160, 160, 3, dtype=torch.uint8)
    sheet = contact_sheet(pictures, [name, ""])
    below = sheet[GAP + 160 :]
    assert (below[:, : GAP + 160] < 128).any()
    assert (below[:, GAP + 160 :] == 255).all()
    assert (below[LINE + GAP - 2 :] == 255).all()


def test_at_most_sixteen_are_shown() -> None:
    pictures = torch.zeros(64, 160, 160, 3, dtype=torch.uint8)
    assert np.array_equal(
        contact_sheet(pictures, ["a"] * 64), contact_sheet(pictures[:16], ["a"] * 16)
    )


def test_reports_need_no_torchvision() -> None:
    program = "import mobilenext.training.monitor, sys; print('torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
