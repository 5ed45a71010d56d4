"""RepositoryModelLoad and RepositoryModelUnload of KServe's protocol, in Triton's form.

A front end changes no models itself: it asks whoever it is given, and answers when that is done.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Literal

import grpc

from scheduler.errors import InvalidRequest, RequestError
from server.auth import PermissionDenied
from server.problems import shown
from server.security import may_change_models
from server.settings import Settings
from server.status import abort
from tickring.kserve import grpc_service_pb2 as kserve

# As Triton calls them among its extensions.
EXTENSIONS = ("model_repository", "model_repository(unload_dependents)")
# Parameters of a load that replace what the repository says; other parameters change nothing here, nor do
# those of an unload.
_CONFIG = "config"
_FILE = "file:"

Kind = Literal["load", "unload"]
ChangeModel = Callable[[Kind, str, str], Awaitable[None]]
Context = grpc.aio.ServicerContext[Any, Any]


class RepositoryChanges:
    """The two handlers."""

    def __init__(
        self,
        change: ChangeModel,
        settings: Settings,
        caller_of: Callable[[Context], str] = lambda context: context.peer(),
    ) -> None:
        """`change` is given what to do, a model's name and who asks; it may raise any RequestError."""
        self._change = change
        self._caller_of = caller_of
        self._allowed = may_change_models(settings)

    async def load(
        self, request: kserve.RepositoryModelLoadRequest, context: Context
    ) -> kserve.RepositoryModelLoadResponse:
        """The newest version of the model, by its manifest as it is now."""
        await self._answer("load", request, context)
        return kserve.RepositoryModelLoadResponse()

    async def unload(
        self, request: kserve.RepositoryModelUnloadRequest, context: Context
    ) -> kserve.RepositoryModelUnloadResponse:
        """All versions of the model."""
        await self._answer("unload", request, context)
        return kserve.RepositoryModelUnloadResponse()

    async def _answer(
        self,
        kind: Kind,
        request: kserve.RepositoryModelLoadRequest | kserve.RepositoryModelUnloadRequest,
        context: Context,
    ) -> None:
        if request.repository_name:  # as RepositoryIndex says it
            await context.abort(
                grpc.StatusCode.UNIMPLEMENTED, "there is one repository, repository_name must be empty"
            )
        try:
            if not self._allowed:
                raise PermissionDenied(
                    "everybody who reaches this host could load and unload models: set auth.tokens_file, "
                    "or use the admin port on the server's own machine",
                    reason="TOKENS_NOT_SET",
                )
            _check(request)
            await self._change(kind, request.model_name, self._caller_of(context))
        except RequestError as error:
            await abort(context, error)


def _check(request: kserve.RepositoryModelLoadRequest | kserve.RepositoryModelUnloadRequest) -> None:
    if not request.model_name:
        raise InvalidRequest("model_name", "is empty, must be the name of a model")
    for name in sorted(request.parameters):
        if name == _CONFIG or name.startswith(_FILE):
            raise InvalidRequest(
                f"parameters[{shown(name)}]",
                "is not taken: models are described and stored in the repository",
            )
