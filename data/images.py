"""Is this image file one that ms-swift will show the student as it was meant?

ms-swift opens a file with Pillow and converts it to RGB, nothing more. What that would change without a word (a 16-bit
film turns white, a film that only EXIF turns upright stays on its side or mirrored) is refused here.
"""

import functools
import os
import stat
import warnings
from collections.abc import Mapping

from PIL import Image, UnidentifiedImageError

from data.files import StrPath

ORIENTATION = 0x0112  # EXIF tag; 1 = as stored
# Of ms-swift's `model_kwargs` (or of the environment, in capitals), those that change a film's size.
FILM_KEYS = ("max_pixels", "min_pixels", "image_max_token_num", "image_min_token_num")
LONGEST_ASPECT = 200  # Qwen's image processors refuse a longer one


def film_settings(model_kwargs: Mapping[str, object]) -> dict[str, int]:
    """The film sizes among ms-swift's `model_kwargs`, by their names in FILM_KEYS; ms-swift takes any letter case.

    Raises ValueError for one that is no positive whole number.
    """
    found = {}
    for key, value in model_kwargs.items():
        if key.lower() in FILM_KEYS and value is not None:
            if not str(value).isdecimal() or not int(str(value)):
                raise ValueError(f"{key} {value}: must be a whole number above 0")
            found[key.lower()] = int(str(value))
    return found


def file_problem(path: str, root: StrPath) -> str | None:
    """Say what is wrong with the file at `path` without reading it, or None: missing, empty, outside `root`.

    Args:
        path: absolute path of the image.
        root: folder that the image must lie in once symbolic links are resolved.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a name that no file system holds
        why = getattr(error, "strerror", error)
        return f"missing or unreadable ({why}); put the file there or name another image root"
    if not stat.S_ISREG(found.st_mode):
        return "is not a file; name an image file"
    if found.st_size == 0:
        return "is empty (0 bytes); copy or download it again"
    folder = _real_folder(os.path.dirname(path))
    real = os.path.join(folder, os.path.basename(path))
    if os.path.islink(real):
        real = os.path.realpath(real)
    top = _real_folder(os.fspath(root))
    if not real.startswith(top.rstrip(os.sep) + os.sep):
        return (
            "lies outside the image root (links followed); name the folder where the files really are as image root, "
            "or pass --allow-outside"
        )
    return None


def decode_problem(path: str) -> str | None:
    """Decode the whole image and say why it cannot be used, or None. Reads every byte: minutes for a large cohort."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _content_problem(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return f"has more than {Image.MAX_IMAGE_PIXELS:,} pixels, Pillow's safety limit; scale it down"
    except UnidentifiedImageError:
        if _is_dicom(path):
            return "is a DICOM file, not an image; convert it to 8-bit PNG with its window applied"
        return "is not an image that Pillow can read; convert it to PNG or JPEG, or download it again"
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        return f"is damaged or cut off ({type(error).__name__}); download it again"


def _content_problem(image: Image.Image) -> str | None:
    width, height = image.size
    if max(width, height) > LONGEST_ASPECT * min(width, height):
        return f"is {width} x {height}: longer than {LONGEST_ASPECT} to 1, which the model refuses; crop it"
    if image.mode.startswith(("I", "F")):
        return (
            f"has more than 8 bits a pixel (mode {image.mode}), which conversion to RGB turns into plain white; "
            "convert it to 8 bits with its window applied"
        )
    if getattr(image, "n_frames", 1) > 1:
        return f"has {image.n_frames} frames and only the first would be seen; write one file a film"
    image.load()
    image.convert("RGB")
    if _orientation(image) not in (0, 1):
        return (
            "is stored turned or mirrored and only its EXIF orientation says so, which the model never sees; "
            "store it upright (mogrify -auto-orient)"
        )
    return None


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged EXIF block changes nothing in what the model sees
        return 1


def _is_dicom(path: str) -> bool:
    with open(path, "rb") as source:
        return source.read(132)[128:] == b"DICM"


@functools.lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    # Films share folders: resolving each folder once keeps the check of a large cohort to one stat a film.
    return os.path.realpath(folder)
