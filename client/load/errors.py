"""Why a load has no result."""


class LoadFailed(Exception):
    """The generator broke, or could not keep up."""


class TooSlow(LoadFailed):
    """The generator could not keep up, so what it measured says nothing of the server."""
