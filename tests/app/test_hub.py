"""A hub that cannot be reached is said at once, wherever a model is named."""

import socket
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import _http

from app.backbones import load_backbone
from app.hub import check_hub
from server_app.pretraining.frozen_models import load_frozen
from server_app.teachers.models import load_model

ID = "nobody/no-model"


@pytest.fixture
def hub(monkeypatch):
    """Return a function that moves the hub to a port of this machine, where no one may wait to try again."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: pytest.fail("it is tried again"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return lambda port: monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")


@pytest.fixture
def nobody(hub):
    with closing(socket.socket()) as held:
        held.bind(("127.0.0.1", 0))  # taken, and not listened at
        hub(held.getsockname()[1])
        yield held.getsockname()[1]


@pytest.mark.parametrize(
    ("load", "setting"),
    [
        (load_backbone, "backbone"),
        (load_model, "teacher.model"),
        (lambda name: load_frozen(name, name, torch.device("cpu")), "pretrain.encoder"),
    ],
)
def test_what_cannot_be_had_from_it_is_one_line_with_the_setting(nobody, load, setting):
    with pytest.raises(ValueError) as caught:
        load(ID)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{setting} = {ID!r} ")
    assert f"http://127.0.0.1:{nobody} cannot be reached" in line
    assert "HF_HUB_OFFLINE=1" in line
    assert "folder" in line


def test_it_is_not_asked_for_a_folder_or_a_path_or_offline(nobody, tmp_path, monkeypatch):
    check_hub(tmp_path)
    check_hub(tmp_path / "misspelt")
    with pytest.raises(OSError):
        check_hub("name-without-an-owner")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check_hub(ID)


def test_it_is_not_asked_for_what_is_in_its_cache(nobody, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--nobody--no-model"
    for folder in ("refs", "snapshots/abc"):
        (kept / folder).mkdir(parents=True)
    with pytest.raises(OSError):
        check_hub(ID)
    (kept / "refs" / "main").write_text("abc")
    (kept / "snapshots" / "abc" / "config.json").write_text("{}")
    check_hub(ID)


def test_a_hub_that_answers_anything_is_there(hub):
    class Busy(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(503)

        def log_message(self, *words):
            pass

    with HTTPServer(("127.0.0.1", 0), Busy) as server:
        answering = threading.Thread(target=server.handle_request)
        answering.start()
        hub(server.server_port)
        check_hub(ID)
        answering.join()
