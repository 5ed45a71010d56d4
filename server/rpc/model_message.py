"""A model as tickring.v1 describes it."""

from scheduler.signature import TensorSpec
from server.administration import ModelDescription
from tickring.v1 import model_pb2


def model_message(description: ModelDescription) -> model_pb2.Model:
    """The message; versions oldest first."""
    model = description.model
    signature = model.signature
    return model_pb2.Model(
        name=signature.name,
        description=model.description,
        versions=[
            model_pb2.ModelVersion(version=str(version), state=_state(description, version), sha256=digest)
            for version, digest in sorted(model.sha256.items())
        ],
        inputs=[_spec(spec) for spec in signature.inputs],
        outputs=[_spec(spec) for spec in signature.outputs],
        format=model.format,
        is_default=description.is_default,
        max_rows=model.max_rows,
    )


def _state(description: ModelDescription, version: int) -> model_pb2.ModelState:
    if version not in description.model.loaded:
        return model_pb2.MODEL_STATE_AVAILABLE
    return model_pb2.MODEL_STATE_READY if description.ready else model_pb2.MODEL_STATE_LOADING


def _spec(spec: TensorSpec) -> model_pb2.TensorSpec:
    """An input or output."""
    return model_pb2.TensorSpec(
        name=spec.name,
        data_type=f"DATA_TYPE_{spec.data_type.name}",
        shape=list(spec.shape),
        max_shape=list(spec.max_shape or ()),
        min_shape=list(spec.min_shape or ()),
    )
