"""What a client keeps of an attempt, and what is left of it."""

import json
import os

from tests.secure_sites import Sites, federate


class TestFiles:
    def test_of_an_attempt_nothing_is_left_but_whose_sum_was_opened(self, tmp_path, changes):
        federate(Sites(tmp_path, changes), rounds=2)
        files = sorted(path.name for path in (tmp_path / "3").iterdir())
        assert files == ["summed-3.txt"]
        lines = (tmp_path / "3" / "summed-3.txt").read_text().splitlines()
        assert [line.split(" ", 1)[1] for line in lines] == [f"{r} 0 1 2 3 4 5 6 7 8 9" for r in (1, 2)]

    def test_what_is_kept_meanwhile_is_the_sites_alone(self, tmp_path, changes):
        modes = set()

        def look(step, party, reply):
            modes.update(path.stat().st_mode & 0o777 for path in (tmp_path / str(party)).glob("secure-*"))
            return reply

        federate(Sites(tmp_path, changes, look))
        assert modes == {0o600}

    def test_after_training_its_own_secrets_are_gone(self, tmp_path, changes):
        def look(step, party, reply):
            if step == "train":
                (file,) = (tmp_path / str(party)).glob("secure-*")
                assert not {"own", "mask", "channel"} & json.loads(file.read_text()).keys()
            return reply

        federate(Sites(tmp_path, changes, look))

    def test_what_is_left_of_a_run_that_ended_in_between_is_deleted(self, tmp_path, changes):
        (tmp_path / "3").mkdir(mode=0o700)
        old, young = (tmp_path / "3" / f"secure-3-{name}.json" for name in ("old", "young"))
        for path in (old, young):
            path.touch(0o600)
        os.utime(old, (1, 1))
        federate(Sites(tmp_path, changes))
        assert (old.exists(), young.exists()) == (False, True)

    def test_no_secret_is_in_any_log_or_message(self, tmp_path, changes, caplog):
        caplog.set_level(0)
        secrets = []

        def look(step, party, reply):
            for file in (tmp_path / str(party)).glob("secure-*"):
                kept = json.loads(file.read_text())
                secrets.extend(kept[name]["hex"] for name in ("own", "mask", "channel") if name in kept)
            return reply

        sites = Sites(tmp_path, changes, look)
        federate(sites)
        assert len(set(secrets)) == 30
        sent = b"".join(str(message.content).encode() for _, message in sites.wire)
        for secret in secrets:
            assert secret not in caplog.text
            assert repr(bytes.fromhex(secret)).encode() not in sent
