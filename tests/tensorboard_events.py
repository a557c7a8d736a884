"""What TensorBoard would read of the files of a run."""

from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event


def events(folder: Path) -> list[Any]:
    """The events of all files in `folder`, in the order of their writing."""
    found = []
    for file in sorted(folder.iterdir()):
        data, offset = file.read_bytes(), 0
        while offset < len(data):  # length (8 bytes), checksum (4), event, checksum (4)
            length = int.from_bytes(data[offset : offset + 8], "little")
            found.append(Event.FromString(data[offset + 12 : offset + 12 + length]))
            offset += 16 + length
    return found


def values(folder: Path) -> dict[tuple[str, int], Any]:
    """(tag, step) -> the last value that was written."""
    return {
        (value.tag, event.step): value for event in events(folder) for value in event.summary.value
    }
