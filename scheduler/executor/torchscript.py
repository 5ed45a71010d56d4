"""TorchScript: `.pt` files, as `torch.jit.save` writes them."""

import io

import torch

from scheduler.executor import rnn_weights, variants
from scheduler.executor.error_text import first_line
from scheduler.executor.lstm_packing import pack
from scheduler.executor.precision import narrow_dtype
from scheduler.executor.runner import DeviceSettings, ModelUnusable
from scheduler.executor.torch_model import TorchModel, check_precision, input_layouts, model_of, open_device
from scheduler.signature import ModelSignature


def load(file: bytes, signature: ModelSignature, settings: DeviceSettings) -> TorchModel:
    """See `Load`.

    torch reads the archive with an unpickler of its own, in C++, that knows tensors and TorchScript classes
    and no Python.
    """
    device = open_device(settings)
    try:
        module = torch.jit.load(io.BytesIO(file), map_location=device)  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise ModelUnusable(f"torch cannot load the file of {signature.name}: {first_line(error)}") from error
    module = module.eval()
    narrow = narrow_dtype(settings.precision)
    if narrow is not None:
        module = module.to(narrow)
    plain = model_of(module, signature, settings, "plain")
    if device.type == "cuda":
        return _on_gpu(module, plain, settings, device)
    if narrow is not None:
        check_precision(plain, settings, device)
    packed = pack(module, input_layouts(signature, settings))
    return plain if packed is None else model_of(packed, signature, settings, "packed")


def _on_gpu(
    module: torch.jit.ScriptModule, plain: TorchModel, settings: DeviceSettings, device: torch.device
) -> TorchModel:
    # The current device is where kernels of a model that names none would go.
    with torch.cuda.device(device):
        for weights in rnn_weights.of_script(module):
            weights.flatten()
        if narrow_dtype(settings.precision) is not None:
            check_precision(plain, settings, device)
        others = [
            model_of(other, plain.signature, settings, name) for name, other in variants.rearranged(module)
        ]
        return variants.fastest(plain, others, settings.precision, device, variants.seconds_on_gpu)
