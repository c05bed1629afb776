"""What Python imports at its start in processes of a test whose models could watch videos."""

import sys


def prepare(event: str, arguments: tuple) -> None:
    """Act just before a module is imported that loads processors."""
    global prepared
    if event == "import" and arguments[0] in ("app.chat", "peft") and not prepared:
        prepared = True
        from no_videos import pictures_alone

        pictures_alone()


prepared = False
sys.addaudithook(prepare)
