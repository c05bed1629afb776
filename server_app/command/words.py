"""Commands that take settings as words: what is given as an option is answered with the word to write."""

import typer.core
from click import Context, NoSuchOption

from .checkout import checkout
from .given import known_settings
from .refusal import Refusal


class TakesSettings(typer.core.TyperCommand):
    """A command with ``[KEY=VALUE …]``."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Read the arguments; a Refusal says how a setting is given that stands there as an option."""
        try:
            return super().parse_args(ctx, args)
        except NoSuchOption as error:
            if (key := error.option_name.lstrip("-")) in known_settings(checkout()):
                raise Refusal(f"{error.option_name} is no option but a setting: {key}=VALUE") from None
            raise
