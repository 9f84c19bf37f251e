"""The ways to run a network on a CPU that `peers.py` compares. Each takes a case and gives a function from images to logits.

Peers are imported where they are used: one that is not installed is reported and does not stop the others.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peer_cases import Case
from torch import Tensor, nn

import mvit_kernels as mk

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Variant:
    """products: of what its products are, so that its floor is theirs. channels_last: images come to it in that format."""

    prepare: Callable[[Case], Network]
    ours: bool = False
    products: torch.dtype = torch.float32
    channels_last: bool = False


def eager(case: Case) -> Network:
    return _channels_last(case.model)


def eager_bf16(case: Case) -> Network:
    return _from_bf16(_channels_last(case.model).bfloat16())


def inductor(case: Case) -> Network:
    """torch.compile with weights folded and packed as constants, the fastest that it does for inference on a CPU."""
    return _inductor(_channels_last(case.model), case.example)


def inductor_bf16(case: Case) -> Network:
    return _from_bf16(_inductor(_channels_last(case.model).bfloat16(), case.example.bfloat16()))


def _inductor(model: nn.Module, example: Tensor) -> Network:
    torch._dynamo.reset()  # or it would give up on a class of networks that it has compiled too often
    torch._inductor.config.freezing = True
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    with torch.inference_mode():  # as it will be called: otherwise it would be compiled again
        compiled(example.to(memory_format=torch.channels_last))
    return compiled


def onnxruntime(case: Case) -> Network:
    return _onnxruntime(_onnx(case), case.threads)


def onnxruntime_int8(case: Case) -> Network:
    """Static quantization in QDQ form, one scale for each output channel of a weight."""
    kept = case.kept(f"onnxruntime-{version('onnxruntime')}-int8", lambda folder: _quantize_onnx(case, folder / "model.onnx"))
    return _onnxruntime(kept / "model.onnx", case.threads)


def openvino(case: Case, precision: str = "f32") -> Network:
    return run_openvino(openvino_file(case), case.threads, precision)


def openvino_int8(case: Case, model_type: str | None = None, precision: str = "f32") -> Network:
    """precision: of what stays float."""
    return run_openvino(openvino_int8_file(case, model_type), case.threads, precision)


def openvino_int8_file(case: Case, model_type: str | None = None) -> Path:
    """Post-training quantization by NNCF, with its defaults or with what it does for transformers."""

    def write(folder: Path) -> None:
        import nncf
        import openvino as ov

        nncf.set_log_level(logging.ERROR)
        quantized = nncf.quantize(
            ov.Core().read_model(openvino_file(case)),
            nncf.Dataset(case.calibration, lambda x: x.numpy()),
            subset_size=len(case.calibration),
            model_type=None if model_type is None else nncf.ModelType(model_type),
        )
        ov.save_model(quantized, folder / "model.xml", compress_to_fp16=False)

    name = f"openvino-{version('openvino')}-nncf-{version('nncf')}-int8-{model_type or 'default'}"
    return case.kept(name, write) / "model.xml"


def accelerated(case: Case) -> Network:
    return mk.accelerate(_channels_last(case.model))


def compiled(case: Case, dtype: torch.dtype = torch.float32) -> Network:
    return mk.compile(copy.deepcopy(case.model), case.example, dtype=dtype, num_threads=case.threads)


def compiled_integers(case: Case, weight_bits: int = 8) -> Network:
    config = mk.QuantConfig(method="minmax", weight_bits=weight_bits)
    quantized = mk.quantize(copy.deepcopy(case.model), case.calibration, config)
    return mk.compile(quantized, case.example, num_threads=case.threads)


VARIANTS = {
    "torch": Variant(eager, channels_last=True),
    "torch-bf16": Variant(eager_bf16, products=torch.bfloat16, channels_last=True),
    "inductor": Variant(inductor, channels_last=True),
    "inductor-bf16": Variant(inductor_bf16, products=torch.bfloat16, channels_last=True),
    "onnxruntime": Variant(onnxruntime),
    "onnxruntime-int8": Variant(onnxruntime_int8, products=torch.int8),
    "openvino": Variant(openvino),
    "openvino-bf16": Variant(functools.partial(openvino, precision="bf16"), products=torch.bfloat16),
    "openvino-int8": Variant(openvino_int8, products=torch.int8),
    "openvino-int8-bf16": Variant(functools.partial(openvino_int8, precision="bf16"), products=torch.int8),
    "openvino-int8-transformer": Variant(functools.partial(openvino_int8, model_type="transformer"), products=torch.int8),
    "accelerate": Variant(accelerated, ours=True, channels_last=True),
    "compile": Variant(compiled, ours=True),
    "compile-bf16": Variant(functools.partial(compiled, dtype=torch.bfloat16), ours=True, products=torch.bfloat16),
    "compile-int8": Variant(compiled_integers, ours=True, products=torch.int8),
    "compile-int6": Variant(functools.partial(compiled_integers, weight_bits=6), ours=True, products=torch.int8),
}


def _from_bf16(network: Network) -> Network:
    """On images of float32, to logits of float32."""
    return lambda x: network(x.bfloat16()).float()


def _channels_last(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _onnx(case: Case) -> Path:
    def write(folder: Path) -> None:
        # Weights beside the file, the exporter's default, are not found by the quantizer.
        torch.onnx.export(case.model, (case.example,), folder / "model.onnx", dynamo=True, external_data=False, verbose=False)

    return case.kept(f"onnx-{version('onnx')}-torch-{version('torch')}", write) / "model.onnx"


def _quantize_onnx(case: Case, path: Path) -> None:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(case.calibration)

        def get_next(self) -> dict[str, Any] | None:
            images = next(self.left, None)
            return None if images is None else {"x": images.numpy()}

    prepared = path.with_name("prepared.onnx")
    quant_pre_process(_onnx(case), prepared, skip_symbolic_shape=True)  # every shape is known; it folds the norms first
    quantization.quantize_static(
        prepared,
        path,
        Images(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    prepared.unlink()


def _onnxruntime(path: Path, threads: int) -> Network:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def openvino_file(case: Case) -> Path:
    def write(folder: Path) -> None:
        import openvino as ov

        model = ov.convert_model(case.model, example_input=case.example, input=[tuple(case.example.shape)])
        ov.save_model(model, folder / "model.xml", compress_to_fp16=False)

    return case.kept(f"openvino-{version('openvino')}-torch-{version('torch')}", write) / "model.xml"


def run_openvino(path: Path, threads: int, precision: str = "f32") -> Network:
    import openvino as ov

    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
    request = ov.Core().compile_model(path, "CPU", options).create_infer_request()
    # What it returns lies in memory of the request, and is overwritten by the next call.
    return lambda x: torch.from_numpy(request.infer([x.numpy()], share_inputs=True, share_outputs=True)[0])
