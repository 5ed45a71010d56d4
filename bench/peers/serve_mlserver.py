"""MLServer with the model; run by its own interpreter."""

import asyncio
from typing import Any

import torch
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse

from bench.bare_model import load
from bench.peers import serving


class Model(MLModel):  # type: ignore[misc]
    """Runs on the loop that serves: a pool of workers would copy every row to another process."""

    async def load(self) -> bool:
        """Before it is ready."""
        self._model = load(self.settings.parameters.uri)
        self._outputs = self.settings.parameters.extra["outputs"]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """A batch."""
        windows = NumpyCodec.decode_input(payload.inputs[0])
        with torch.inference_mode():
            answers = self._model(torch.from_numpy(windows))
        outputs: Any = [
            NumpyCodec.encode_output(name, answer.numpy())
            for name, answer in zip(self._outputs, answers, strict=True)
        ]
        return InferenceResponse(model_name=self.name, outputs=outputs)


def main() -> None:
    """Serves until it is told to end."""
    given = serving.parser(__doc__).parse_args()
    server = MLServer(
        Settings(
            debug=False,
            host="127.0.0.1",
            grpc_port=given.port,
            http_port=given.spare_port,
            metrics_endpoint=None,
            parallel_workers=0,
            load_models_at_startup=False,
        )
    )
    outputs = list(serving.sizes(given.outputs))
    model = ModelSettings(
        name="sp500_direction",
        implementation=Model,
        parameters=ModelParameters(uri=given.model, extra={"outputs": outputs}),
        max_batch_size=given.max_batch,
        max_batch_time=0.001,
    )
    asyncio.run(server.start([model]))


if __name__ == "__main__":
    main()
