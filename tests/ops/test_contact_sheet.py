"""The sheet: where cells stand, what is in them, captions of every kind."""

from __future__ import annotations

import numpy as np
import pytest

from ops import contact_sheet as sheet_module
from ops.contact_sheet import FRAME, GAP, MARGIN, contact_sheet, shortened, stretched, viewable, width
from tests.odd_images import picture

CELL = 100


def cell(sheet: np.ndarray, column: int) -> np.ndarray:
    """The pixels of a cell in the first row of a sheet without a title."""
    left = MARGIN + column * (CELL + GAP)
    return sheet[MARGIN : MARGIN + CELL, left : left + CELL]


def test_pictures_stand_side_by_side_in_cells_of_one_size():
    colours = [(0, 0, 255), (0, 255, 0), (255, 0, 0)]
    sheet = contact_sheet([np.full((50, 50, 3), c, np.uint8) for c in colours], ["a", "b", "c"], 3, cell=CELL)
    for column, colour in enumerate(colours):
        assert (cell(sheet, column) == colour).all()


def test_a_wide_picture_keeps_its_aspect_between_two_bars():
    sheet = contact_sheet([np.full((300, 600, 3), 7, np.uint8)], [""], cell=CELL)
    drawn = (cell(sheet, 0) == 7).all(axis=2)
    assert drawn[25:75].all()
    assert (cell(sheet, 0)[:25] == FRAME).all()
    assert (cell(sheet, 0)[75:] == FRAME).all()


def test_a_small_picture_grows_by_whole_pixels():
    small = picture(28, 28)
    sheet = contact_sheet([small], ["7"], cell=CELL)
    np.testing.assert_array_equal(cell(sheet, 0)[8:92, 8:92], small.repeat(3, axis=0).repeat(3, axis=1))


@pytest.mark.parametrize(
    "shape", [(9, 9), (9, 9, 1), (9, 9, 2), (9, 9, 3), (9, 9, 4), (9, 9, 7), (1, 4000, 3), (0, 5, 3)]
)
@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.int32, np.float64])
def test_pictures_of_every_shape_and_type_can_be_shown(shape, kind):
    sheet = contact_sheet([np.zeros(shape, kind)], ["x"], cell=CELL)
    assert sheet.dtype == np.uint8
    assert sheet.ndim == 3


def test_pairs_stand_side_by_side():
    pair = np.dstack([np.zeros((4, 4), np.uint8), np.full((4, 4), 255, np.uint8)])
    np.testing.assert_array_equal(viewable(pair)[0, :, 0], [0] * 4 + [255] * 4)


def test_floats_are_stretched_unless_they_are_grey_levels():
    np.testing.assert_array_equal(stretched(np.array([-1.0, 0.0, 1.0])), [0, 128, 255])
    np.testing.assert_array_equal(stretched(np.array([0.0, 0.25, 0.5])), [0, 128, 255])
    np.testing.assert_array_equal(stretched(np.array([3.0, 99.6, 200.0])), [3, 100, 200])
    np.testing.assert_array_equal(stretched(np.array([np.nan, -np.inf, -2.0, 2.0])), [0, 0, 0, 255])
    np.testing.assert_array_equal(stretched(np.full(3, -5.0)), [128] * 3)


def test_a_caption_is_drawn_below_its_cell_and_never_beside_it():
    plain = contact_sheet([picture()] * 2, ["", ""], 2, cell=CELL)
    named = contact_sheet([picture()] * 2, ["a very long class name " * 9 + "\nand more", ""], 2, cell=CELL)
    assert (cell(named, 0) == cell(plain, 0)).all()
    below = named[MARGIN + CELL :]
    assert (below[:, MARGIN : MARGIN + CELL] != 255).any()
    assert (below[:, MARGIN + CELL + GAP // 2 :] == 255).all()


def test_a_long_name_is_shortened_to_its_room():
    text = "a very long class name that does not fit"
    short = shortened(text, 90, 15, False)
    assert short.endswith("…")
    assert text.startswith(short[:-1])
    assert width(short, 15, False) <= 90 < width(text, 15, False)
    assert shortened("short", 90, 15, False) == "short"


@pytest.mark.parametrize(
    "caption", ["Größe", "日本語", "ελληνικά", "emoji 🐈", "tab\tnew\rline", "\udcff\udc00", "", "\n", "x" * 5000]
)
def test_captions_of_any_letters_can_be_written(caption):
    assert contact_sheet([picture()], [caption], title=caption).shape[2] == 3


@pytest.mark.skipif(not hasattr(sheet_module.cv2, "FontFace"), reason="OpenCV 4 writes ASCII only")
def test_letters_beyond_ascii_are_drawn_as_themselves():
    assert (contact_sheet([picture()], ["ж"]) != contact_sheet([picture()], ["?"])).any()


def test_opencv_4_writes_what_ascii_has(monkeypatch):
    monkeypatch.delattr(sheet_module.cv2, "FontFace", raising=False)
    assert sheet_module.printable("Größe ж") == "Groe"
    assert (contact_sheet([picture()], ["Café"], title="t") != 255).any()


def test_as_many_columns_as_are_asked_for_and_about_three_to_two_otherwise():
    assert contact_sheet([picture()] * 7, [""] * 7, 7, cell=CELL).shape[1] == 2 * MARGIN + 7 * CELL + 6 * GAP
    height, wide = contact_sheet([picture()] * 40, ["a\nb"] * 40).shape[:2]
    assert 1 < wide / height < 1.7


def test_nothing_to_show_is_an_empty_sheet():
    assert contact_sheet([], [], title="empty").shape[2] == 3


def test_a_caption_too_few_is_refused():
    with pytest.raises(ValueError, match="2 images with 1 captions"):
        contact_sheet([picture()] * 2, ["a"])
