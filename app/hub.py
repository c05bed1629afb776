"""The Hugging Face hub: whether it can be asked at all."""

from pathlib import Path

import httpx
from huggingface_hub import constants, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import get_session, validate_repo_id

_SECONDS = 5.0


def check_hub(name: str | Path) -> None:
    """Ask once whether the hub can be reached, if `name` is to come from there.

    Its client would try again and again for each file, half a minute long, before it says so.

    Parameters
    ----------
    name : str or Path
        A folder, or the id of a model on the hub.

    Raises
    ------
    OSError
        If there is no such folder, the name can be an id that is not in the cache, and nothing answers within
        five seconds.
    """
    if Path(name).is_dir() or is_offline_mode():
        return
    try:
        validate_repo_id(str(name))
        if isinstance(try_to_load_from_cache(str(name), "config.json"), str):
            return
        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except HFValidationError:
        return  # a path, about which the hub is not asked
    except httpx.TransportError as error:
        reason = str(error) or type(error).__name__
        raise OSError(
            f"there is no such folder, and {constants.ENDPOINT} cannot be reached: {reason};"
            " with HF_HUB_OFFLINE=1 it is not asked, and its cache alone is used"
        ) from None
