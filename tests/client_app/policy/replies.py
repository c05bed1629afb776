"""What a site is asked, what it answers, and the secret that must not be in it."""

from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from tests.bad_input.given import domain

SECRET = "Mallory-Vance-1970"


KINDS = ("query", "train", "evaluate")


def everything(reply):
    """Return all bytes of a reply that leave, its error's text included."""
    if reply.has_error():
        return reply.error.reason.encode()
    return b"\0".join(part.deflate() for part in get_all_nested_objects(reply.content).values())


def refusal(reply):
    return reply.error.reason.split("occurred. Message: ")[1].removesuffix("'>")


def with_column(name, value, row=3):
    rows = domain(train=12, val=2, test=10, name=SECRET)
    rows[row][name] = value
    return rows


BROKEN = {"bytes": SECRET.encode(), "path": f"{SECRET}.png"}
