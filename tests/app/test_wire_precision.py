"""The codec: bytes and errors worked out by hand, and nothing read that was not written."""

import zlib
from math import ceil, prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from app.wire_precision import ENCODINGS, LEVELS, decode, encode, encoded_size


def body(values, precision, name=""):
    """Encode, check the sum at the end, and return what is before it."""
    data = encode(np.asarray(values, np.float32), precision, name)
    assert data[-4:] == zlib.crc32(name.encode() + data[:-4]).to_bytes(4, "little")
    return data[:-4]


# bfloat16 is float32's upper half: 1 is 0x3F80, 0.5 0x3F00, 2 0x4000.
def test_bfloat16_is_the_upper_half_rounded_to_the_nearest_and_ties_to_even():
    values = [1.0, -2.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20]
    assert np.frombuffer(body(values, "bfloat16"), "<u2").tolist() == [0x3F80, 0xC000, 0x3F80, 0x3F82, 0x3F81]


def test_int8_has_a_scale_a_row_and_a_byte_a_value():
    data = body([[127.0, -63.6, 0.4], [-0.5 * 127, 0.5, 0.0]], "int8")
    assert np.frombuffer(data[:4], "<u2").tolist() == [0x3F80, 0x3F00]  # 1 and 1/2
    assert np.frombuffer(data[4:], np.int8).tolist() == [127, -64, 0, -127, 1, 0]


def test_int4_puts_the_first_of_two_values_low_and_fills_up_with_zero():
    data = body([7.0, -7.0, 1.2], "int4")
    # Scale 1; codes 7 and −7 as 15 and 1, then 1 and 0 as 9 and 8.
    assert data == bytes([0x80, 0x3F, 0x1F, 0x89])


def test_a_scale_is_rounded_up_so_that_the_largest_value_has_a_code():
    scale = np.float32(100 / 127)
    rounded = np.frombuffer(body([100.0, 3.0], "int8")[:2], "<u2").astype(np.uint32) << 16
    assert scale < rounded.view(np.float32)[0] <= scale * (1 + 2**-7)


def test_an_array_of_one_axis_is_one_channel():
    assert len(body(np.ones(5), "int8")) == 2 + 5
    assert len(body(np.ones((5, 1)), "int8")) == 5 * 2 + 5
    assert len(body(np.ones((3, 2, 2)), "int4")) == 3 * 2 + 6
    assert len(body(1.0, "int4")) == 2 + 1


@pytest.mark.parametrize("precision", ENCODINGS)
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (1,), (7,), (2, 3), (3, 1), (2, 3, 3)])
def test_every_shape_comes_back(precision, shape):
    values = np.linspace(-2, 1, prod(shape), dtype=np.float32).reshape(shape)
    data = encode(values, precision, "x")
    assert len(data) == encoded_size(shape, precision)
    back = decode(data, shape, precision, "x")
    assert (back.shape, back.dtype) == (shape, np.float32)
    # Half a step: 2⁻⁸ of a bfloat16 value, 1/14 of the row's largest in int4, its rounding up included.
    np.testing.assert_allclose(back, values, rtol=0, atol=2 / 14 * (1 + 2**-7))


finite = st.floats(-(2.0**126), 2.0**126, width=32)


@pytest.mark.parametrize("precision", ENCODINGS)
@given(values=arrays.arrays(np.float32, arrays.array_shapes(max_dims=3, max_side=6), elements=finite))
def test_no_value_is_off_by_more_than_half_a_step(precision, values):
    back = decode(encode(values, precision), values.shape, precision)
    rows = values.reshape(len(values), -1) if values.ndim > 1 else values.reshape(1, -1)
    if precision == "bfloat16":
        step = np.abs(rows) * 2.0**-7
    else:
        step = np.abs(rows).max(axis=1, keepdims=True) / LEVELS[precision] * (1 + 2.0**-7)
    error = np.abs(back.astype(float) - values).reshape(rows.shape)
    assert (error <= step / 2 * 1.0001 + 1e-37).all()  # below 1e-37 a scale has fewer digits


@pytest.mark.parametrize("precision", ENCODINGS)
def test_what_is_encoded_is_encoded_to_the_same(precision):
    values = decode(encode(np.float32([[3, -1, 0.3], [0, 0, 0]]), precision), (2, 3), precision)
    np.testing.assert_array_equal(decode(encode(values, precision), (2, 3), precision), values)


@pytest.mark.parametrize("precision", ENCODINGS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.4e38])
def test_a_value_without_a_code_is_not_written(precision, value):
    with pytest.raises(ValueError, match=r"array 'a\.b' has values that are not finite, or too large for"):
        encode(np.float32([1, value]), precision, "a.b")


def sealed(data, name="x"):
    return data + zlib.crc32(name.encode() + data).to_bytes(4, "little")


ONE, INFINITE, NAN, NEGATIVE = b"\x80\x3f", b"\x80\x7f", b"\xc0\x7f", b"\x80\xbf"


@pytest.mark.parametrize(
    ("precision", "data", "reason"),
    [
        ("int8", sealed(ONE + b"\x01\x80"), "holds codes or scales that no int8 has"),
        ("int4", sealed(ONE + b"\x09"), "holds codes or scales that no int4 has"),
        ("int8", sealed(NEGATIVE + b"\x01\x01"), "holds codes or scales that no int8 has"),
        ("int8", sealed(NAN + b"\x01\x01"), "holds codes or scales that no int8 has"),
        ("int8", sealed(INFINITE + b"\x01\x01"), "has values that are not finite"),
        ("int8", sealed(INFINITE + b"\x00\x00"), "has values that are not finite"),
        ("int4", sealed(b"\x7f\x7f" + b"\xff"), "has values that are not finite"),  # 7 times 3.4e38
        ("bfloat16", sealed(ONE + INFINITE), "has values that are not finite"),
        ("bfloat16", sealed(ONE + NAN), "has values that are not finite"),
        ("bfloat16", sealed(ONE), "holds 6 bytes that are not bfloat16 values of shape (2,)"),
        ("int4", sealed(ONE + b"\x99\x99"), "holds 8 bytes that are not int4 values of shape (2,)"),
        ("int8", b"", "holds 0 bytes that are not int8 values of shape (2,)"),
        ("int8", sealed(ONE + b"\x01\x01", "y"), "has a checksum that is not that of its bytes"),
    ],
)
def test_bytes_that_nobody_wrote_are_refused_in_one_line(precision, data, reason):
    with pytest.raises(ValueError) as error:
        decode(data, (2,), precision, "x")
    assert str(error.value) == f"array 'x' {reason}"


def test_what_fills_up_the_last_byte_is_zero():
    assert decode(sealed(ONE + b"\x89"), (1,), "int4", "x").tolist() == [1]
    with pytest.raises(ValueError, match="that no int4 has"):
        decode(sealed(ONE + b"\x99"), (1,), "int4", "x")


@pytest.mark.parametrize("precision", ENCODINGS)
@given(bit=st.integers(0, 8 * 10 - 1))
def test_a_flipped_bit_is_found(precision, bit):
    data = bytearray(encode(np.float32([1, -2, 0.5]), precision, "x"))
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    with pytest.raises(ValueError, match="a checksum that is not"):
        decode(bytes(data), (3,), precision, "x")


def test_bytes_of_the_shared_adapter_of_vilt_b32_are_as_few_as_promised():
    """Width 768, bottleneck 48, twelve blocks: per block 48 × 768, 48, 768 × 48 and 768 values."""
    shapes = [(48, 768), (48,), (768, 48), (768,)] * 12
    values = sum(map(prod, shapes))
    assert values == 894_528
    sizes = {precision: sum(encoded_size(s, precision) for s in shapes) for precision in ENCODINGS}
    scales, sums = 2 * 12 * (48 + 1 + 768 + 1), 4 * len(shapes)
    assert sizes["bfloat16"] == 2 * values + sums == 1_789_248
    assert sizes["int8"] == values + scales + sums == 914_352
    assert sizes["int4"] == ceil(values / 2) + scales + sums == 467_088
