"""Pictures in the files of others: which bytes can be used, and which paths may be read."""

import io
import stat
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

# Not all that Pillow opens: for some formats it starts another program.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
LARGEST_IMAGE = 64_000_000  # pixels: 192 MB when decoded, whatever its bytes are
LARGEST_FILE = 200_000_000  # bytes of a picture's file


class BadRowError(ValueError):
    """A row that cannot be used; says why in a few words."""


def one_line(error: Exception) -> str:
    """Return what an error says, or else its name."""
    return " ".join(str(error).split()) or type(error).__name__


def image_fault(encoded: bytes) -> str:
    """Say what is wrong with a picture, in a few words; nothing if all of it can be decoded."""
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            if (pixels := image.width * image.height) > LARGEST_IMAGE:
                return f"image has {pixels} pixels, more than LARGEST_IMAGE = {LARGEST_IMAGE}"
            # All that becomes of it later: the whole of it, turned upright, in colours.
            ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError:  # whose text names a place in memory
        return "image cannot be decoded (its kind cannot be told)"
    # Pillow's decoders raise whatever a broken file makes them raise.
    except Exception as error:
        return f"image cannot be decoded ({one_line(error)})"
    return ""


def read_file(path: Path, root: Path) -> bytes:
    """Read a picture's file; it must lie in the folder `root`, also when all links are followed.

    Raises
    ------
    BadRowError
        It lies elsewhere, is not a file, or cannot be read.
    """
    try:
        real = path.resolve()
        if not real.is_relative_to(root.resolve()):
            raise BadRowError(f"image {str(path)!r} lies outside of {str(root)!r}")
        found = real.stat()
        if not stat.S_ISREG(found.st_mode):
            raise BadRowError(f"image {str(path)!r} is not a file")
        if found.st_size > LARGEST_FILE:
            raise BadRowError(f"image {str(path)!r} has {found.st_size} bytes; allowed: {LARGEST_FILE}")
        with real.open("rb") as file:
            return file.read(LARGEST_FILE)
    except FileNotFoundError:
        raise BadRowError(f"image {str(path)!r} is not there") from None
    except BadRowError:
        raise
    # Links in a circle, bytes that no path has, no right to read it.
    except (OSError, RuntimeError, ValueError) as error:
        raise BadRowError(f"image {str(path)!r} cannot be read ({one_line(error)})") from None
