import hashlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pb_jax.data import DataError, pictures
from pb_jax.data.pictures import ArrayImages, decode, in_threads, resize
from tests.data_files import jpeg


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


RAMP = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3


@pytest.mark.parametrize("form", ["png", "bmp", "gif", "webp"])
def test_decodes_exactly_what_was_stored(form):
    content = encoded(Image.fromarray(RAMP), form, **({"lossless": True} if form == "webp" else {}))
    np.testing.assert_array_equal(decode(content), RAMP, strict=True)


def test_jpeg_is_what_pillow_makes_of_it():
    content = jpeg(3, (20, 10))
    expected = np.asarray(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(decode(content), expected)
    small = Image.open(io.BytesIO(content)).resize((7, 7), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(decode(content, 7), np.asarray(small))


@pytest.mark.parametrize(
    ("image", "form", "expected"),
    [
        (Image.new("L", (3, 2), 90), "png", (90, 90, 90)),
        (Image.new("1", (3, 2), 1), "png", (255, 255, 255)),
        (Image.new("LA", (3, 2), (9, 0)), "png", (255, 255, 255)),
        (Image.new("RGBA", (3, 2), (255, 0, 0, 128)), "png", (255, 127, 127)),
        (Image.new("CMYK", (3, 2), (0, 255, 255, 0)), "jpeg", (255, 0, 0)),
        (Image.fromarray(np.full((2, 3), 0x80FF, np.uint16)), "png", (128, 128, 128)),
    ],
    ids=["grey", "two colours", "transparent", "half transparent", "CMYK", "16 bits"],
)
def test_every_mode_becomes_rgb(image, form, expected):
    pixels = decode(encoded(image, form))
    assert pixels.shape == (2, 3, 3)
    assert np.abs(pixels.astype(int) - expected).max() <= 1


def test_a_camera_held_sideways():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to see it upright
    content = encoded(Image.fromarray(RAMP), "png", exif=exif)
    np.testing.assert_array_equal(decode(content), np.rot90(RAMP, -1))


def claiming(width: int, height: int) -> bytes:
    """A few bytes of PNG that claim to be a picture of that size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


@pytest.mark.parametrize("size", [(10_000, 5_001), (10_000, 10_000), (100_000, 100_000)])
def test_a_few_bytes_that_claim_gigabytes_are_refused_unread(size):
    with pytest.raises(DataError, match=r"more than 50,000,000 in all|exceeds limit of"):
        decode(claiming(*size))


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", jpeg()[:-40], jpeg()[:100], b"%PDF-1.4", b"P6 1 1 255 abc"],
    ids=["empty", "text", "cut", "header only", "PDF", "PPM"],
)
def test_what_is_no_picture(content):
    with pytest.raises(DataError, match="is no picture, or is damaged"):
        decode(content)


def test_only_the_formats_that_are_admitted():
    content = encoded(Image.fromarray(RAMP), "png")
    with pytest.raises(DataError, match="is no picture"):
        decode(content, formats=("JPEG",))


@given(st.data())
def test_damaged_bytes_are_a_picture_or_an_error_of_the_data(data):
    content = bytearray(jpeg() if data.draw(st.booleans()) else encoded(RAMP_IMAGE, "png"))
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = decode(bytes(content))
    except DataError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3


RAMP_IMAGE = Image.fromarray(RAMP)


def test_resize_keeps_a_flat_picture_flat_and_averages_detail():
    flat = np.full((9, 5, 3), (10, 200, 60), np.uint8)
    np.testing.assert_array_equal(resize(flat, 4), np.full((4, 4, 3), (10, 200, 60)))
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(resize(stripes, 8)[1:-1, 1:-1].astype(int) - 127).max() <= 2  # antialiased


def test_array_images():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)
    images = ArrayImages(["a", "b", "c", "d"], pixels)
    np.testing.assert_array_equal(images.read([2, 0, 2]), pixels[[2, 0, 2]])
    np.testing.assert_array_equal(images.read(np.array([3]), 6), pixels[[3]])
    np.testing.assert_array_equal(images.read([1, 3], 4)[1], resize(pixels[3], 4))
    assert images.read([], 5).shape == (0, 5, 5, 3)
    assert images.read([]).shape == (0, 6, 6, 3)
    assert images.digest == ArrayImages(images.names, pixels.copy()).digest
    assert images.digest == ArrayImages("wxyz", pixels).digest
    assert (
        len({images.digest, images.first(3).digest, ArrayImages("abcd", pixels[::-1]).digest}) == 3
    )
    assert len(images.first(3)) == len(images.first(3).names) == 3
    expected = hashlib.sha256(b"(4, 6, 6, 3)" + pixels.tobytes()).hexdigest()
    assert images.digest == expected


@pytest.mark.parametrize("indices", [[4], [-1], [0, 9], [0.0], [[0]], ["a"]], ids=str)
def test_impossible_indices(indices):
    images = ArrayImages("abcd", np.zeros((4, 2, 2, 3), np.uint8))
    with pytest.raises(IndexError, match="indices must be"):
        images.read(indices)


@pytest.mark.parametrize("shape", [(2, 4, 4, 1), (3, 4, 4, 3), (2, 4, 3)], ids=str)
def test_pixels_that_do_not_fit_the_names(shape):
    with pytest.raises(ValueError, match="pixels must be uint8"):
        ArrayImages("ab", np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="pixels must be uint8"):
        ArrayImages("ab", np.zeros((2, 4, 4, 3), np.float32))


def test_pictures_of_different_size_need_a_size():
    with pytest.raises(ValueError, match="size must be given"):
        pictures.stack([RAMP, RAMP[:2]], None)


def test_in_threads_keeps_the_order_and_raises():
    assert list(in_threads(lambda x: x * x, range(50))) == [x * x for x in range(50)]
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda x: 1 // x, [1, 0, 1]))
