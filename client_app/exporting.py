"""A client's own head and adapters in files that stock tools load, at its own site.

    python -m client_app.exporting --folder RUN --node-config 'partition-id=2 …' --to FOLDER

What is written is as private as the state that it is made of: the folder is closed to
others, and goes nowhere.
"""

import argparse
import shutil
import sys
import warnings
from pathlib import Path

from app.adapters import REGISTERED_BY
from app.exported import save_adapter, save_head
from app.home import closed_folder
from app.learner import HEAD
from app.settings import SettingsError

from .asking import Asked, add_whom, whom


def export_private(asked: Asked, folder: Path) -> None:
    """Save what a client keeps to itself, with the shared adapter that its teacher branch has as well.

    Parameters
    ----------
    asked : Asked
        The client, with its last private state.
    folder : Path
        Is made, closed to others. Gets ``classifier.safetensors`` where the head is private, in the form of
        `server_app.export`; of a method with a local adapter the PEFT checkpoint ``local`` (of one that parts
        a LoRA, the client's whole LoRA), and ``shared`` where a branch has both in place; and a README.md.

    Raises
    ------
    SettingsError
        The folder is there or cannot be made, or the run leaves nothing private with its clients.
    """
    learner, client, backbone = asked.learner, asked.client, asked.client.backbone
    settings, method = client.settings, client.method
    head = {n.removeprefix(HEAD): v for n, v in learner.private().items() if n.startswith(HEAD)}
    local = learner.state("local") if "local" in method.trained else {}
    if not head and not local:
        raise SettingsError(
            f"method = {settings.method!r} with head = {settings.head!r} leaves a client nothing of its own;"
            " allowed: a run with private heads or local adapters"
        )
    if folder.exists() or folder.is_symlink():
        raise SettingsError(f"to = {str(folder)!r} is there already; allowed: a new folder")
    closed_folder("to", folder.absolute())
    try:
        if head:
            save_head(folder, head, client.partition.answers)
        if local:
            shared = learner.state("shared")
            # A method that parts a LoRA has one matrix here and the other there.
            save_adapter(folder / "local", settings, backbone, {**shared, **local})
            if {"teacher", "mixed"} & set(method.branches):
                save_adapter(folder / "shared", settings, backbone, shared)
        (folder / "README.md").write_text(_readme(asked, folder), encoding="utf-8")
    except BaseException:
        shutil.rmtree(folder)
        raise


def _readme(asked: Asked, folder: Path) -> str:
    """Say what is in the folder, and how it is loaded."""
    client = asked.client
    module = REGISTERED_BY.get(client.settings.adapter)
    known = f" after `import feddat.app.{module}`" if module else ""
    teacher = "; the teacher branch has both in place, each at half its scale"
    both = teacher if "teacher" in client.method.branches else ""
    parts = {
        "classifier.safetensors": "the client's own head, for `feddat.app.heads.AnswerHead` (linear, layer"
        " norm, GELU, linear); what it chooses from is `answers` in the file's metadata",
        "local": f"its local adapter, for `PeftModel.from_pretrained(backbone, folder)`{known}",
        "shared": f"the adapter of all clients, likewise{both}",
    }
    there = "\n".join(f"- `{name}`: {what}." for name, what in parts.items() if (folder / name).exists())
    return _README.format(client=client, run=asked.shelf.run_name, there=there)


_README = """# Client {client.partition_id} of the run {run}: private

**Learned from this client's own examples, and never sent in the run. Do not publish it.**

{there}

The backbone is `{client.settings.backbone}`. The model card of the run's own `{client.method.artifact}` has
the lines from a picture and a question to features, which are what the head takes.
"""


def main(arguments: list[str] | None = None, prog: str = "python -m client_app.exporting") -> int:
    """Export and say where; what cannot be had is one line, and the code is 1."""
    parser = argparse.ArgumentParser(prog, description=__doc__.splitlines()[0])
    add_whom(parser)
    parser.add_argument("--to", type=Path, required=True, help="a new folder")
    given = parser.parse_args(arguments)
    # What transformers and PEFT think of their own code is not the user's business.
    warnings.simplefilter("ignore")
    try:
        asked = whom(given)
        export_private(asked, given.to)
    except (ValueError, OSError) as error:
        print(f"feddat: {error}", file=sys.stderr)
        return 1
    print(f"client {asked.client.partition_id}'s own, private: {given.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
