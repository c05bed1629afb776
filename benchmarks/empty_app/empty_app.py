"""Sends as many bytes to and fro as the built-in backbone's adapter has, as often as this project would."""

import logging
import time

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

client = ClientApp()
server = ServerApp()


@client.query()
def query(message: Message, context: Context) -> Message:
    """Answer."""
    return Message(RecordDict(), reply_to=message)


@client.train()
def train(message: Message, context: Context) -> Message:
    """Send back what came."""
    return Message(RecordDict({"arrays": message.content.array_records["arrays"]}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Ask all clients, then have them train for some rounds."""
    log = logging.getLogger("flwr")
    deadline = time.monotonic() + 120
    while not (nodes := list(grid.get_node_ids())):
        if time.monotonic() > deadline:
            raise RuntimeError("no node came within 120 s")
        time.sleep(0.1)
    rounds = int(context.run_config["num-rounds"])
    for server_round in range(rounds + 1):
        content = RecordDict({"config": ConfigRecord({"server-round": server_round})})
        if server_round:
            log.info("[ROUND %d/%d]", server_round, rounds)
            content["arrays"] = ArrayRecord([np.zeros(20_000, np.float32)])
        kind = "train" if server_round else "query"
        asked = [
            Message(content, dst_node_id=node, message_type=kind, group_id=str(server_round))
            for node in nodes
        ]
        list(grid.send_and_receive(asked))
    log.info("the run is over")
