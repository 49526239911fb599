"""Pictures: what is written beside a row stays beside it."""

import torch

from solverbench.pictures import LABEL_WIDTH, labelled


def test_a_long_label_makes_room_for_itself() -> None:
    row = torch.zeros(2, 1, 8, 8)
    short, long = (labelled([(label, row)], 1) for label in ("GS @ 4", "a long title " * 6))
    images = 8 + 2 + 8
    assert short.width == LABEL_WIDTH + images
    assert long.width > short.width
    text = long.crop((0, 0, long.width - images, long.height)).convert("L")
    darkest = [min(text.crop((x, 0, x + 1, text.height)).tobytes()) for x in range(text.width)]
    assert min(darkest[:-4]) < 128  # written
    assert min(darkest[-4:]) == 255  # and done before the images begin
