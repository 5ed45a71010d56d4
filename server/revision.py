"""What the service runs on at a moment: every change makes another one."""

from dataclasses import dataclass

from server.lineup import Lineup
from server.settings import Settings


@dataclass(frozen=True)
class Revision:
    """Settings and models, as every process has them or will shortly.

    Attributes:
        number: of changes since the start, from 0.
    """

    number: int
    settings: Settings
    lineup: Lineup

    def to_fields(self) -> dict[str, object]:
        """As parts of a control message."""
        return {
            "revision": self.number,
            "settings": self.settings.model_dump_json(),
            "lineup": self.lineup.to_json(),
        }
