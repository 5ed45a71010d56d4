"""Requests in KServe's form to the model `pair` of `world`."""

from typing import Any

import numpy as np

from tickring.kserve import grpc_service_pb2 as kserve

Input = kserve.ModelInferRequest.InferInputTensor
Output = kserve.ModelInferRequest.InferRequestedOutputTensor
Contents = kserve.InferTensorContents
Parameter = kserve.InferParameter


def raw_request(rows: int = 1, **fields: Any) -> kserve.ModelInferRequest:
    """A good one: element i of x is i, k is the row; data is raw."""
    good = kserve.ModelInferRequest(
        model_name="pair",
        inputs=[
            Input(name="x", datatype="FP32", shape=[rows, 2, 3]),
            Input(name="k", datatype="INT64", shape=[rows]),
        ],
        raw_input_contents=[
            np.arange(rows * 6).astype("<f4").tobytes(),
            np.arange(rows).astype("<i8").tobytes(),
        ],
    )
    good.MergeFrom(kserve.ModelInferRequest(**fields))
    return good


def typed_request(rows: int = 1) -> kserve.ModelInferRequest:
    """The same, with typed contents."""
    request = raw_request(rows)
    del request.raw_input_contents[:]
    request.inputs[0].contents.fp32_contents.extend(range(rows * 6))
    request.inputs[1].contents.int64_contents.extend(range(rows))
    return request
