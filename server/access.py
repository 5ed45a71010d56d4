"""Who gets in at one gRPC port: its certificate, its tokens and its guard, as new as their files."""

import asyncio

import grpc

from server.auth import Tokens
from server.guard import Guard
from server.limits import Cancels
from server.settings import Settings
from server.tls import Certificates

# How soon a new certificate or a changed file of tokens is taken up.
LOOK_AT_FILES_EVERY_S = 1.0


class Access:
    """Of one port. Belongs to its event loop."""

    def __init__(self, settings: Settings) -> None:
        """Reads the files that are asked for. Raises SettingsError where one cannot be used."""
        tls, tokens_file = settings.tls, settings.auth.tokens_file
        self._certificates = Certificates(tls) if tls.cert is not None else None
        self._tokens = Tokens(tokens_file) if tokens_file is not None else None
        self.cancels = Cancels(settings.server.max_cancels_per_s)
        self.guard = Guard(self._tokens, self.cancels)

    def add_port(self, server: grpc.aio.Server, target: str) -> None:
        """Lets the server listen there, with TLS where there is a certificate."""
        if self._certificates is None:
            server.add_insecure_port(target)
        else:
            server.add_secure_port(target, self._certificates.credentials())

    async def keep_up(self) -> None:
        """Takes up what changes in the files, and ends the RPC streams of tokens that are good no more.

        Ends at once where there are no files, and else when it is cancelled.
        """
        files = [file for file in (self._certificates, self._tokens) if file is not None]
        while files:
            await asyncio.sleep(LOOK_AT_FILES_EVERY_S)
            for file in files:
                await asyncio.to_thread(file.refresh)
            self.guard.recheck()

    def caller_of(self, context: "grpc.aio.ServicerContext[bytes, bytes]") -> str:
        """Who calls, for a log: the name of the token, or the peer's address where there are no tokens.

        Raises Unauthenticated where the token, good when the call began, is good no more.
        """
        if self._tokens is None:
            return context.peer()
        return self._tokens.caller(context.invocation_metadata() or ()).name
