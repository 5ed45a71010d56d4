"""ModelService: what the server serves."""

from typing import Any

import grpc

from scheduler.errors import RequestError
from server.administration import ModelDescription
from server.models import ModelTable, ServedModel
from server.rpc.model_message import model_message
from server.status import abort
from tickring.v1 import model_pb2

SERVICE = "tickring.v1.ModelService"

Context = grpc.aio.ServicerContext[bytes, bytes]


class ModelService:
    """The handlers of tickring.v1.ModelService."""

    def __init__(self, models: ModelTable) -> None:
        self._models = models

    def handler(self) -> "grpc.GenericRpcHandler[Any, Any]":
        """For `server.add_generic_rpc_handlers`."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "ListModels": grpc.unary_unary_rpc_method_handler(
                    self.list_models,
                    request_deserializer=model_pb2.ListModelsRequest.FromString,
                    response_serializer=model_pb2.ListModelsResponse.SerializeToString,
                ),
                "GetModel": grpc.unary_unary_rpc_method_handler(
                    self.get_model,
                    request_deserializer=model_pb2.GetModelRequest.FromString,
                    response_serializer=model_pb2.GetModelResponse.SerializeToString,
                ),
            },
        )

    async def list_models(
        self, _request: model_pb2.ListModelsRequest, _context: Context
    ) -> model_pb2.ListModelsResponse:
        """All models, ordered by name."""
        models = sorted(self._models, key=lambda model: model.signature.name)
        return model_pb2.ListModelsResponse(models=[self._describe(model) for model in models])

    async def get_model(
        self, request: model_pb2.GetModelRequest, context: Context
    ) -> model_pb2.GetModelResponse:
        """One model, or NOT_FOUND."""
        try:
            return model_pb2.GetModelResponse(model=self._describe(self._models.find(request.model_name)))
        except RequestError as error:
            await abort(context, error)

    def _describe(self, model: ServedModel) -> model_pb2.Model:
        is_default = model.signature.name == self._models.default_name
        return model_message(ModelDescription(model, is_default, self._models.ready))
