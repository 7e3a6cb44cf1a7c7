"""The gRPC messages of the Open Inference Protocol, version 2.

They are built here from a table, in a pool of their own: no generated code, and no quarrel with a client library in the
same process that has registered messages of the same names.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
METHODS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")

# message -> its fields: "name type", with [] where there are many of it, {} for a map from strings, and | for one of
# several of which there is one. The number of a field is its place. A dot is before the name of a message.
_MESSAGES = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live bool",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready bool",
    "ModelReadyRequest": "name string, version string",
    "ModelReadyResponse": "ready bool",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name string, version string, extensions string[]",
    "ModelMetadataRequest": "name string, version string",
    "TensorMetadata": "name string, datatype string, shape int64[]",
    "ModelMetadataResponse": "name string, versions string[], platform string, inputs .TensorMetadata[], "
    "outputs .TensorMetadata[]",
    "InferParameter": "bool_param bool|, int64_param int64|, string_param string|, double_param double|, "
    "uint64_param uint64|",
    "InferTensorContents": "bool_contents bool[], int_contents int32[], int64_contents int64[], "
    "uint_contents uint32[], uint64_contents uint64[], fp32_contents float[], fp64_contents double[], "
    "bytes_contents bytes[]",
    "InferInputTensor": "name string, datatype string, shape int64[], parameters .InferParameter{}, "
    "contents .InferTensorContents",
    "InferRequestedOutputTensor": "name string, parameters .InferParameter{}",
    "ModelInferRequest": "model_name string, model_version string, id string, parameters .InferParameter{}, "
    "inputs .InferInputTensor[], outputs .InferRequestedOutputTensor[], raw_input_contents bytes[]",
    "InferOutputTensor": "name string, datatype string, shape int64[], parameters .InferParameter{}, "
    "contents .InferTensorContents",
    "ModelInferResponse": "model_name string, model_version string, id string, parameters .InferParameter{}, "
    "outputs .InferOutputTensor[], raw_output_contents bytes[]",
}
_Field = descriptor_pb2.FieldDescriptorProto


def _describe(message: Any, fields: str) -> None:
    for number, field in enumerate(filter(None, fields.split(", ")), 1):
        name, kind = field.split(" ")
        made = message.field.add(name=name, number=number, label=_Field.LABEL_OPTIONAL)
        if kind.endswith("[]"):
            made.label, kind = _Field.LABEL_REPEATED, kind[:-2]
        elif kind.endswith("{}"):
            made.label, kind = _Field.LABEL_REPEATED, kind[:-2]
            entry = message.nested_type.add(name="".join(part.title() for part in name.split("_")) + "Entry")
            entry.options.map_entry = True
            _describe(entry, f"key string, value {kind}")
            kind = f".{message.name}.{entry.name}"
        elif kind.endswith("|"):  # one of several
            made.oneof_index, kind = 0, kind[:-1]
        if kind.startswith("."):
            made.type, made.type_name = _Field.TYPE_MESSAGE, f".{PACKAGE}{kind}"
        else:
            made.type = getattr(_Field, f"TYPE_{kind.upper()}")


def _build() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="open_inference.proto", package=PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        if "|" in fields:
            message.oneof_decl.add(name="parameter_choice")
        _describe(message, fields)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in _MESSAGES
    }


MESSAGES: dict[str, Any] = _build()
