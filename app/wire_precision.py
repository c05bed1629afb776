"""Arrays as the bytes they travel in: float32 values in fewer bits.

An int8 or int4 array has one scale a channel, that is a row of its first axis (an array of one axis or none
is one channel): the largest magnitude over the largest code, rounded up to bfloat16. Its codes are symmetric
around 0; of int4, two share a byte.

===========  ==================================================================
precision    bytes, little-endian, before the four of the CRC-32
===========  ==================================================================
bfloat16     the upper half of each float32, rounded to the nearest
int8         a bfloat16 scale each channel, then a signed byte each value
int4         the same scales, then four bits each value: code + 8, the first value low
===========  ==================================================================

The CRC covers the array's name too, so that arrays of one shape cannot change places.
"""

import zlib
from math import ceil, prod

import numpy as np

LEVELS = {"int8": 127, "int4": 7}  # the largest code
ENCODINGS = ("bfloat16", *LEVELS)
LARGEST = 3.3e38  # leaves room to round up in bfloat16
CRC_BYTES = 4


def encode(values: np.ndarray, precision: str, name: str = "") -> bytes:
    """Write a float32 array of any shape in one of `ENCODINGS`.

    Raises
    ------
    ValueError
        A value is not finite, or too large.
    """
    values = np.asarray(values, np.float32)
    if not (np.abs(values) <= LARGEST).all():
        raise ValueError(f"array '{name}' has values that are not finite, or too large for {precision}")
    if precision == "bfloat16":
        return _sealed(_to_bfloat16(values).tobytes(), name)
    rows = _rows(values, values.shape)
    scales = np.abs(rows).max(axis=1, initial=0) / np.float32(LEVELS[precision])
    bits = _upper_half(scales.view(np.uint32) + np.uint32(0xFFFF))
    scales = _from_bfloat16(bits)
    codes = np.rint(rows / np.where(scales > 0, scales, 1)[:, None]).astype(np.int8).ravel()
    return _sealed(bits.tobytes() + (codes.tobytes() if precision == "int8" else _pack(codes)), name)


def decode(data: bytes, shape: tuple[int, ...], precision: str, name: str = "") -> np.ndarray:
    """Read what `encode` wrote.

    Raises
    ------
    ValueError
        One line: why the bytes are none of an array of this name and shape.
    """
    if len(data) != encoded_size(shape, precision):
        wanted = f"{precision} values of shape {shape}"
        raise ValueError(f"array '{name}' holds {len(data)} bytes that are not {wanted}")
    body, size = data[:-CRC_BYTES], prod(shape)
    if _sealed(body, name) != data:
        raise ValueError(f"array '{name}' has a checksum that is not that of its bytes")
    if precision == "bfloat16":
        values = _from_bfloat16(np.frombuffer(body, "<u2"))
    else:
        channels = _channels(shape)
        scales = _from_bfloat16(np.frombuffer(body, "<u2", channels))
        codes = np.frombuffer(body, np.int8, offset=2 * channels)
        if precision == "int4":
            codes = _unpack(codes.view(np.uint8))
        # Symmetric: the lowest number of its bits is no code, and what fills up the last byte is 0.
        if (codes < -LEVELS[precision]).any() or codes[size:].any() or not (scales >= 0).all():
            raise ValueError(f"array '{name}' holds codes or scales that no {precision} has")
        with np.errstate(over="ignore", invalid="ignore"):
            values = _rows(codes[:size], shape) * scales[:, None]
    if not np.isfinite(values).all():
        raise ValueError(f"array '{name}' has values that are not finite")
    return values.reshape(shape)


def encoded_size(shape: tuple[int, ...], precision: str) -> int:
    """Return how many bytes an array of a shape takes."""
    size = prod(shape)
    if precision == "bfloat16":
        return 2 * size + CRC_BYTES
    return 2 * _channels(shape) + (size if precision == "int8" else ceil(size / 2)) + CRC_BYTES


def _channels(shape: tuple[int, ...]) -> int:
    size: int = prod(shape)
    return shape[0] if len(shape) > 1 and size else int(size > 0)


def _rows(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    channels = _channels(shape)
    return values.reshape(channels, values.size // max(1, channels))


def _sealed(body: bytes, name: str) -> bytes:
    return body + zlib.crc32(body, zlib.crc32(name.encode())).to_bytes(CRC_BYTES, "little")


def _upper_half(bits: np.ndarray) -> np.ndarray:
    return (bits >> np.uint32(16)).astype("<u2")


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    bits = values.view(np.uint32)
    half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))  # ties to even
    return _upper_half(bits + half)


def _from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _pack(codes: np.ndarray) -> bytes:
    nibbles = np.append(codes, np.zeros(codes.size % 2, np.int8)).astype(np.uint8) + np.uint8(8)
    return (nibbles[::2] | nibbles[1::2] << np.uint8(4)).tobytes()


def _unpack(packed: np.ndarray) -> np.ndarray:
    nibbles = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=1).ravel()
    return nibbles.astype(np.int8) - np.int8(8)
