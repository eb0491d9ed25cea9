"""Claims about image files: they are read as they look, folders are surveyed by headers, losses of a format can be redone."""

from __future__ import annotations

import numpy as np
import pytest

from shiftscope.core.images import image_files
from shiftscope.core.images.image_files import Route

Image = pytest.importorskip("PIL.Image")

LEVELS = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)


def folder(path, levels, suffix="png", **settings):
    path.mkdir()
    for number, one in enumerate(levels):
        Image.fromarray(one).save(path / f"{number}.{suffix}", **settings)
    return path


def test_sixteen_bit_and_turned_files_are_read_as_they_look(tmp_path):
    (tmp_path / "deep").mkdir()
    deep = np.array([[0, 65535], [32768, 1]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep" / "a.png")
    assert np.array_equal(
        image_files.decoded(tmp_path / "deep" / "a.png", 1)[0], deep.astype(np.float32) / np.float32(65535)
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "turned").mkdir()
    Image.fromarray(LEVELS[0]).save(tmp_path / "turned" / "a.png", exif=exif)
    assert image_files.survey(tmp_path / "turned").sizes == [(8, 6)]
    turned = image_files.decoded(tmp_path / "turned" / "a.png", 3)
    assert np.array_equal(turned[:, 0], LEVELS[0][::-1, 0].T / np.float32(255))


def test_grey_and_colour_palettes_and_alpha_are_told_apart(tmp_path):
    modes = {"L": True, "LA": True, "1": True, "RGB": False, "RGBA": False, "P": False}
    for mode, grey in modes.items():
        (tmp_path / mode).mkdir()
        Image.fromarray(LEVELS[0]).convert(mode).save(tmp_path / mode / "a.png")
        assert image_files.survey(tmp_path / mode).grey == grey
        assert image_files.decoded(tmp_path / mode / "a.png", 3).shape == (3, 6, 8)
    whole = image_files.decoded(tmp_path / "RGBA" / "a.png", 3)
    assert np.array_equal(whole, LEVELS[0].transpose(2, 0, 1) / np.float32(255))


def test_a_route_through_jpeg_costs_what_its_quality_costs(tmp_path):
    grey = LEVELS[..., 0]
    x = grey[:1] / np.float32(255)
    coarse, fine = (
        image_files.survey(folder(tmp_path / str(quality), grey, "jpg", quality=quality)).route for quality in (30, 95)
    )
    assert (coarse.format, coarse.short_side) == ("JPEG", 6)
    lost = np.abs(image_files.through(x, coarse) - x).mean()
    assert 0 < np.abs(image_files.through(x, fine) - x).mean() < lost / 2
    assert np.array_equal(image_files.through(x, Route(6, "PNG")), x)
    stored = image_files.decoded(tmp_path / "30" / "0.jpg", 1)
    assert np.abs(image_files.through(x, coarse) - stored).max() < 1e-6  # the same tables give the same file


def test_routes_are_the_same_where_size_and_losses_are():
    assert image_files.same_route(Route(6, "PNG"), Route(6, "array"))
    assert not image_files.same_route(Route(6, "PNG"), Route(7, "PNG"))
    assert not image_files.same_route(Route(6, "PNG"), Route(6, "JPEG"))
    assert not image_files.same_route(Route(6, "JPEG", {0: [1]}), Route(6, "JPEG", {0: [2]}))


def test_other_files_in_a_folder_are_counted_and_left_out(tmp_path):
    path = folder(tmp_path / "f", LEVELS)
    (path / "notes.txt").write_text("x")
    found = image_files.survey(path, limit=2)
    assert [file.name for file in found.files] == ["0.png", "1.png"]
    assert "1 files are no images" in found.notes[0]
