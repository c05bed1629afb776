"""One round under secure aggregation: its messages besides training, and what they took."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from .inbox import Reply, Request, answers, config_of, saying, with_record
from .secure_aggregation import MESSAGE_TYPE, Agreed, Reasons, Said, SecureAggregation

ANSWER = "secure"  # the record of an answer


class SecureRound:
    """One attempt at a round's sum; another one begins anew.

    Parameters
    ----------
    secure : SecureAggregation
        What is said, and what must come back.
    grid : Grid
        What carries it.
    requests : Mapping[int, Request]
        Whom the round asks to train, by node id.
    for_one : callable
        Puts what is for one node alone into a message's content.
    timeout : float
        Seconds to wait for answers.

    Attributes
    ----------
    out : dict[int, str]
        By partition: why one that was to train did not get as far.
    """

    def __init__(
        self,
        secure: SecureAggregation,
        grid: Grid,
        requests: Mapping[int, Request],
        for_one: Callable[[RecordDict, int], RecordDict],
        timeout: float,
    ) -> None:
        self._secure, self._grid, self._for_one, self._timeout = secure, grid, for_one, timeout
        self._asked = requests
        self._nodes = {request.partition_id: node for node, request in requests.items()}
        self._bytes = {partition: {"bytes-down": 0, "bytes-up": 0} for partition in self._nodes}
        first = next(iter(requests.values()))
        self._about: Said = dict(config_of(first.content)[1])
        self._sent = first.arrays
        self._agreed: Agreed | None = None
        self.out: Reasons = {}

    def agree(self) -> dict[int, Request]:
        """Exchange keys and shares; return whom to ask to train, by node id, their messages complete.

        Raises
        ------
        RuntimeError
            There are more clients than can be added up.
        ValueError
            The arrays that are sent are not of real numbers, or not the same for all.
        """
        records = {id(request.arrays): request.arrays for request in self._asked.values()}
        if any(_bytes_in(record) != _bytes_in(self._sent) for record in records.values()):
            raise ValueError(
                "the strategy sends different arrays to clients of a round; allowed under secure aggregation:"
                " the same to all, since what is summed are changes"
            )
        answer = self._secure.secure_sum.expected(self._sent)
        self._agreed, self.out = self._secure.agree(self._nodes, self._about, self._ask)
        left: dict[int, Request] = {}
        for partition in self._agreed.dealers if self._agreed else ():
            told = self._agreed.for_training(partition)  # type: ignore[union-attr]
            self._bytes[partition]["bytes-down"] += ConfigRecord(told).count_bytes()
            request = replace(self._asked[self._nodes[partition]], answer=answer)
            request.message.content = saying(request.message.content, told)
            left[self._nodes[partition]] = request
        return left

    def lack(self, valid: int) -> str | None:
        """Say in one line what is missing for a sum; None if nothing is."""
        return self._secure.lack(self._agreed, valid)

    def open(self, valid: Sequence[Reply]) -> tuple[list[Reply], Reasons]:
        """Open the sum; return the replies with their mean for each one's arrays, and who gave no shares.

        Raises
        ------
        RuntimeError
            It cannot be opened.
        """
        assert self._agreed, "an attempt without parties has no replies"
        masked = {
            reply.partition_id: next(iter(reply.message.content.array_records.values())) for reply in valid
        }
        arrays, out = self._secure.open(self._agreed, self._sent, masked, self._about, self._ask)
        return [replace(reply, message=with_record(arrays, reply.message)) for reply in valid], out

    def bytes_of(self, partition: int) -> dict[str, int]:
        """Return the bytes that a client was sent, and that it sent, besides the arrays."""
        return dict(self._bytes[partition])

    def _ask(self, told: Mapping[int, Said]) -> tuple[dict[int, ConfigRecord], Reasons]:
        messages, partitions = {}, {}
        for partition, said in told.items():
            node, config = self._nodes[partition], ConfigRecord(dict(said))
            content = self._for_one(RecordDict({"config": config}), node)
            messages[node] = Message(content, dst_node_id=node, message_type=MESSAGE_TYPE)
            partitions[node] = partition
            self._bytes[partition]["bytes-down"] += config.count_bytes()
        replies = self._grid.send_and_receive(list(messages.values()), timeout=self._timeout)
        good, out = answers(messages, replies, ANSWER)
        for node, answer in good.items():
            self._bytes[partitions[node]]["bytes-up"] += answer.count_bytes()
        return (
            {partitions[node]: answer for node, answer in good.items()},
            {partitions[node]: reason for node, reason in out.items()},
        )


def _bytes_in(arrays: ArrayRecord) -> dict[str, bytes]:
    return {name: array.data for name, array in arrays.items()}
