"""Fixtures: a project of somebody else's, in one process."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message
from safetensors.torch import load_file

from benchmarks.in_process import Federation
from tests.conftest import own_home
from tests.examples.projects import CLIENTS, ROUNDS, components, config


@dataclass
class Finished:
    """A project's run that is over: what it saved, and every message with where it went."""

    saved: dict[str, torch.Tensor]
    wire: list[tuple[str, Message]]

    def messages(self, where: str, kind: str) -> list[Message]:
        """Return the messages `where` ("to client", "to server") of a kind ("train", "evaluate")."""
        return [message for to, message in self.wire if to == where and message.metadata.message_type == kind]

    def arrays(self, where: str, kind: str) -> list[ArrayRecord]:
        """Return what such messages carry."""
        records = (message.content.array_records for message in self.messages(where, kind))
        return [record for found in records for record in found.values()]

    def measured(self, kind: str, name: str) -> np.ndarray:
        """Return what the clients said, (rounds, clients)."""
        records = [message.content.metric_records for message in self.messages("to server", kind)]
        return np.reshape([record[name] for found in records for record in found.values()], (ROUNDS, CLIENTS))


@contextmanager
def imported(project: Path) -> Iterator[tuple[Any, Any]]:
    """Give a project's ServerApp and ClientApp; forget its package before and after: others have its name.

    Flower's command, called in this process, leaves those of the projects that it starts.
    The ClientApp is loaded when it is first called: after the ServerApp has begun, as in a simulation.
    """
    names = components(project)
    forget(project)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(project)
        try:
            yield (
                _load(names["serverapp"]),
                lambda message, context: _load(names["clientapp"])(message, context),
            )
        finally:
            forget(project)


def forget(project: Path) -> None:
    """Let a project's package be imported anew."""
    package = components(project)["serverapp"].split(".")[0]
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        del sys.modules[name]


def _load(name: str) -> Any:
    module, app = name.split(":")
    return getattr(importlib.import_module(module), app)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, drawn) -> Callable[[Path], Finished]:
    """Run a project with a few clients and rounds, once for all tests that only read it."""

    @cache
    def run(project: Path) -> Finished:
        folder = tmp_path_factory.mktemp(project.parent.name)
        with own_home(folder, drawn), imported(project) as (server_app, client_app):
            settings = config(project) | {
                "num-server-rounds": ROUNDS,
                "save-to": str(folder / "saved.safetensors"),
            }
            torch.manual_seed(0)
            federation = Federation(settings, CLIENTS, client_app=client_app)
            federation.call(server_app)
        assert federation.wire is not None
        return Finished(load_file(folder / "saved.safetensors"), federation.wire)

    return run
