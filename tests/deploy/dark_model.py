"""An exported model without training: dark pixels are lesions. It needs no torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper


def write_dark_model(folder: Path, size: tuple[int, int] = (64, 64), **metadata: Any) -> Path:
    """Folder of an ONNX model whose logit is ``(100 - grey) / 10``; ``metadata`` goes into its ``bustseg.json``."""
    folder.mkdir(parents=True)
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 1, *size])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1, *size])
    nodes = [
        helper.make_node("Cast", ["image"], ["grey"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["middle", "grey"], ["darkness"]),
        helper.make_node("Mul", ["darkness", "slope"], ["logits"]),
    ]
    constants = [helper.make_tensor(n, TensorProto.FLOAT, [], [v]) for n, v in (("middle", 100.0), ("slope", 0.1))]
    graph = helper.make_graph(nodes, "dark", [image], [logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    content = model.SerializeToString()
    onnx.checker.check_model(model)
    (folder / "model.onnx").write_bytes(content)
    head = {
        "format_version": 1,
        "format": "onnx",
        "precision": "fp32",
        "model": "model.onnx",
        "files": {"model.onnx": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}},
        "input": {"image_size": list(size)},
        "threshold": 0.5,
        **metadata,
    }
    (folder / "bustseg.json").write_text(json.dumps(head))
    return folder
