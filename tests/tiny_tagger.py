"""A tagger that is really there: an ONNX model that gives three tags .9, .2 and .6, whatever the image."""

import csv
from pathlib import Path

TAGS = ("red", "blue_sky", "robot")
CAPTION = "red, robot"  # those above the threshold


def write_tagger(folder: Path) -> Path:
    import onnx
    from onnx import TensorProto, helper

    folder.mkdir(parents=True)
    constants = [
        helper.make_tensor("values", TensorProto.FLOAT, [1, 3], [0.9, 0.2, 0.6]),
        helper.make_tensor("none", TensorProto.FLOAT, [1, 1], [0.0]),
    ]
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "none"], ["zero"]),
        helper.make_node("Add", ["zero", "values"], ["tags"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 32, 32, 3])
    tags = helper.make_tensor_value_info("tags", TensorProto.FLOAT, [1, 3])
    graph = helper.make_graph(nodes, "tagger", [image], [tags], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(folder / "model.onnx"))
    with open(folder / "selected_tags.csv", "w", newline="") as file:
        csv.writer(file).writerows([("name", "category"), *((tag, 0) for tag in TAGS)])
    return folder
