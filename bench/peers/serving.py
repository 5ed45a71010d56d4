"""What the servers of all peers share. They run it in environments of their own, so it imports little."""

import argparse


def parser(about: str | None) -> argparse.ArgumentParser:
    """Of what `catalog` tells every server."""
    made = argparse.ArgumentParser(description=about)
    made.add_argument("--port", type=int, required=True)
    made.add_argument("--spare-port", type=int, required=True)
    made.add_argument("--model", required=True)
    made.add_argument("--input", required=True)
    made.add_argument("--output", action="append", required=True, metavar="NAME:SIZE", dest="outputs")
    made.add_argument("--max-batch", type=int, required=True)
    return made


def sizes(outputs: list[str]) -> dict[str, int]:
    """Of the outputs that were told, by name, in the order in which the model gives them."""
    return {name: int(size) for name, size in (each.split(":") for each in outputs)}
