"""Fixtures: a project of somebody else's, in one process."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, Message
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.in_process import Federation
from tests.examples.projects import components, config


@dataclass
class Finished:
    """A project's run that is over: what it saved, and every message with where it went."""

    saved: dict[str, Tensor]
    wire: list[tuple[str, Message]]

    def messages(self, where: str, kind: str) -> list[Message]:
        """Return the messages `where` ("to client", "to server") of a kind ("train", "evaluate")."""
        return [message for to, message in self.wire if to == where and message.metadata.message_type == kind]

    def arrays(self, where: str, kind: str) -> list[ArrayRecord]:
        """Return what such messages carry."""
        records = (message.content.array_records for message in self.messages(where, kind))
        return [record for found in records for record in found.values()]


@contextmanager
def imported(project: Path) -> Iterator[tuple[Any, Any]]:
    """Give a project's ServerApp and ClientApp; its package is forgotten afterwards, for others have its name."""
    names = components(project)
    package = names["serverapp"].split(".")[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(project)
        try:
            modules = (names[which].split(":") for which in ("serverapp", "clientapp"))
            server_app, client_app = (getattr(importlib.import_module(name), app) for name, app in modules)
            yield server_app, client_app
        finally:
            for name in [name for name in sys.modules if name.split(".")[0] == package]:
                del sys.modules[name]


@pytest.fixture
def federate(home, tmp_path) -> Iterator[Callable[..., Finished]]:
    """Run a project with two clients for two rounds; keywords are settings."""
    import torch

    with ExitStack() as stack:

        def run(project: Path, **settings: Any) -> Finished:
            server_app, client_app = stack.enter_context(imported(project))
            saved = tmp_path / f"{project.parent.name}-{project.name}.safetensors"
            own = {"num-server-rounds": 2, "save-to": str(saved)}
            given = config(project) | own | {key.replace("_", "-"): value for key, value in settings.items()}
            torch.manual_seed(0)
            federation = Federation(given, 2, client_app=client_app)
            federation.call(server_app)
            assert federation.wire is not None
            return Finished(load_file(saved), federation.wire)

        yield run
