"""Caffe's messages, as far as featd reads them: Caffe's field numbers under a protobuf package of our own.

Real pycaffe registers the package `caffe` in the same process, so this one lives in a pool of its own and is
built here, at import, from a table: no generated code that ties featd to one version of protobuf.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

Message = Any
"""A message of this schema; protobuf makes the classes at run time."""

PACKAGE: Final = "featd.caffe"

# A message is a line without indent. A field is `number name type`, `*` after the type: repeated, `!`: repeated
# and packed, `= x`: its default. An enum is `enum Name VALUE VALUE=number ...`, counted from 0.
_TABLE: Final = """
BlobShape
  1 dim int64!
BlobProto
  7 shape BlobShape
  5 data float!
  8 double_data double!
  1 num int32
  2 channels int32
  3 height int32
  4 width int32
FillerParameter
  enum VarianceNorm FAN_IN FAN_OUT AVERAGE
  1 type string = constant
  2 value float = 0
  3 min float = 0
  4 max float = 1
  5 mean float = 0
  6 std float = 1
  7 sparse int32 = -1
  8 variance_norm .VarianceNorm
NetState
  enum Phase TRAIN TEST
  1 phase .Phase = TEST
  2 level int32 = 0
  3 stage string*
NetStateRule
  1 phase NetState.Phase
  2 min_level int32
  3 max_level int32
  4 stage string*
  5 not_stage string*
ParamSpec
  enum DimCheckMode STRICT PERMISSIVE
  1 name string
  2 share_mode .DimCheckMode
  3 lr_mult float = 1
  4 decay_mult float = 1
LossParameter
  enum NormalizationMode FULL VALID BATCH_SIZE NONE
  1 ignore_label int32
  2 normalize bool
  3 normalization .NormalizationMode = VALID
BatchNormParameter
  1 use_global_stats bool
  2 moving_average_fraction float = 0.999
  3 eps float = 1e-5
ConcatParameter
  1 concat_dim uint32 = 1
  2 axis int32 = 1
ConvolutionParameter
  enum Engine DEFAULT CAFFE CUDNN
  1 num_output uint32
  2 bias_term bool = true
  3 pad uint32*
  4 kernel_size uint32*
  5 group uint32 = 1
  6 stride uint32*
  7 weight_filler FillerParameter
  8 bias_filler FillerParameter
  9 pad_h uint32 = 0
  10 pad_w uint32 = 0
  11 kernel_h uint32
  12 kernel_w uint32
  13 stride_h uint32
  14 stride_w uint32
  15 engine .Engine
  16 axis int32 = 1
  17 force_nd_im2col bool = false
  18 dilation uint32*
DropoutParameter
  1 dropout_ratio float = 0.5
EltwiseParameter
  enum EltwiseOp PROD SUM MAX
  1 operation .EltwiseOp = SUM
  2 coeff float*
  3 stable_prod_grad bool = true
FlattenParameter
  1 axis int32 = 1
  2 end_axis int32 = -1
InnerProductParameter
  1 num_output uint32
  2 bias_term bool = true
  3 weight_filler FillerParameter
  4 bias_filler FillerParameter
  5 axis int32 = 1
  6 transpose bool = false
InputParameter
  1 shape BlobShape*
LRNParameter
  enum NormRegion ACROSS_CHANNELS WITHIN_CHANNEL
  enum Engine DEFAULT CAFFE CUDNN
  1 local_size uint32 = 5
  2 alpha float = 1
  3 beta float = 0.75
  4 norm_region .NormRegion
  5 k float = 1
  6 engine .Engine
PoolingParameter
  enum PoolMethod MAX AVE STOCHASTIC
  enum Engine DEFAULT CAFFE CUDNN
  enum RoundMode CEIL FLOOR
  1 pool .PoolMethod
  2 kernel_size uint32
  3 stride uint32 = 1
  4 pad uint32 = 0
  5 kernel_h uint32
  6 kernel_w uint32
  7 stride_h uint32
  8 stride_w uint32
  9 pad_h uint32 = 0
  10 pad_w uint32 = 0
  11 engine .Engine
  12 global_pooling bool = false
  13 round_mode .RoundMode
  1013 ceil_mode bool = true
PowerParameter
  1 power float = 1
  2 scale float = 1
  3 shift float = 0
PReLUParameter
  1 filler FillerParameter
  2 channel_shared bool = false
ReLUParameter
  enum Engine DEFAULT CAFFE CUDNN
  1 negative_slope float = 0
  2 engine .Engine
ReshapeParameter
  1 shape BlobShape
  2 axis int32 = 0
  3 num_axes int32 = -1
ScaleParameter
  1 axis int32 = 1
  2 num_axes int32 = 1
  3 filler FillerParameter
  4 bias_term bool = false
  5 bias_filler FillerParameter
SigmoidParameter
  enum Engine DEFAULT CAFFE CUDNN
  1 engine .Engine
SoftmaxParameter
  enum Engine DEFAULT CAFFE CUDNN
  1 engine .Engine
  2 axis int32 = 1
TanHParameter
  enum Engine DEFAULT CAFFE CUDNN
  1 engine .Engine
LayerParameter
  1 name string
  2 type string
  3 bottom string*
  4 top string*
  5 loss_weight float*
  6 param ParamSpec*
  8 include NetStateRule*
  9 exclude NetStateRule*
  10 phase NetState.Phase
  11 propagate_down bool*
  101 loss_param LossParameter
  104 concat_param ConcatParameter
  106 convolution_param ConvolutionParameter
  108 dropout_param DropoutParameter
  110 eltwise_param EltwiseParameter
  117 inner_product_param InnerProductParameter
  118 lrn_param LRNParameter
  121 pooling_param PoolingParameter
  122 power_param PowerParameter
  123 relu_param ReLUParameter
  124 sigmoid_param SigmoidParameter
  125 softmax_param SoftmaxParameter
  127 tanh_param TanHParameter
  131 prelu_param PReLUParameter
  133 reshape_param ReshapeParameter
  135 flatten_param FlattenParameter
  139 batch_norm_param BatchNormParameter
  142 scale_param ScaleParameter
  143 input_param InputParameter
V1LayerParameter
  enum LayerType NONE=0 ACCURACY=1 BNLL=2 CONCAT=3 CONVOLUTION=4 DATA=5 DROPOUT=6 EUCLIDEAN_LOSS=7 FLATTEN=8 \
HDF5_DATA=9 HDF5_OUTPUT=10 IM2COL=11 IMAGE_DATA=12 INFOGAIN_LOSS=13 INNER_PRODUCT=14 LRN=15 \
MULTINOMIAL_LOGISTIC_LOSS=16 POOLING=17 RELU=18 SIGMOID=19 SOFTMAX=20 SOFTMAX_LOSS=21 SPLIT=22 TANH=23 \
WINDOW_DATA=24 ELTWISE=25 POWER=26 SIGMOID_CROSS_ENTROPY_LOSS=27 HINGE_LOSS=28 MEMORY_DATA=29 ARGMAX=30 \
THRESHOLD=31 DUMMY_DATA=32 SLICE=33 MVN=34 ABSVAL=35 SILENCE=36 CONTRASTIVE_LOSS=37 EXP=38 DECONVOLUTION=39
  enum DimCheckMode STRICT PERMISSIVE
  2 bottom string*
  3 top string*
  4 name string
  5 type .LayerType
  7 blobs_lr float*
  8 weight_decay float*
  9 concat_param ConcatParameter
  10 convolution_param ConvolutionParameter
  12 dropout_param DropoutParameter
  17 inner_product_param InnerProductParameter
  18 lrn_param LRNParameter
  19 pooling_param PoolingParameter
  21 power_param PowerParameter
  24 eltwise_param EltwiseParameter
  30 relu_param ReLUParameter
  32 include NetStateRule*
  33 exclude NetStateRule*
  35 loss_weight float*
  38 sigmoid_param SigmoidParameter
  39 softmax_param SoftmaxParameter
  37 tanh_param TanHParameter
  42 loss_param LossParameter
  1001 param string*
  1002 blob_share_mode .DimCheckMode*
NetParameter
  1 name string
  2 layers V1LayerParameter*
  3 input string*
  4 input_dim int32*
  5 force_backward bool = false
  6 state NetState
  7 debug_info bool = false
  8 input_shape BlobShape*
  100 layer LayerParameter*
"""
# round_mode (BVLC) and ceil_mode (forks) share the number 13; definitions are read as text, where only names count.


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One row of the table. `type` is a scalar's name, or the name of a message or enum of this schema."""

    number: int
    name: str
    type: str
    repeated: bool
    packed: bool
    default: str | None


_SCALARS: Final = {"double": 1, "float": 2, "int64": 3, "int32": 5, "bool": 8, "string": 9, "uint32": 13}
_TYPE_MESSAGE: Final = 11
_TYPE_ENUM: Final = 14

FIELDS: Final[dict[str, dict[str, FieldSpec]]] = {}
"""Message name -> field name -> its row."""
ENUMS: Final[dict[str, dict[str, int]]] = {}
"""`Message.Enum` -> value name -> number."""


def _read_table() -> None:
    message = ""
    for line in _TABLE.strip().splitlines():
        if not line.startswith(" "):
            message = line
            FIELDS[message] = {}
            continue
        words = line.split()
        if words[0] == "enum":
            values = (word.partition("=") for word in words[2:])
            ENUMS[f"{message}.{words[1]}"] = {
                name: int(number or at) for at, (name, _, number) in enumerate(values)
            }
            continue
        kind = words[2].rstrip("*!")
        default = words[4] if len(words) > 3 else None
        FIELDS[message][words[1]] = FieldSpec(
            number=int(words[0]),
            name=words[1],
            type=message + kind if kind.startswith(".") else kind,
            repeated=words[2][-1] in "*!",
            packed=words[2].endswith("!"),
            default=default,
        )


def _build() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="featd/caffe.proto", package=PACKAGE, syntax="proto2")
    for message, fields in FIELDS.items():
        entry = file.message_type.add(name=message)
        for path, values in ENUMS.items():
            owner, _, name = path.partition(".")
            if owner == message:
                enum = entry.enum_type.add(name=name)
                for value, number in values.items():
                    enum.value.add(name=value, number=number)
        for spec in fields.values():
            field = entry.field.add(name=spec.name, number=spec.number, label=3 if spec.repeated else 1)
            if spec.type in _SCALARS:
                field.type = _SCALARS[spec.type]
            else:
                field.type = _TYPE_ENUM if spec.type in ENUMS else _TYPE_MESSAGE
                field.type_name = f".{PACKAGE}.{spec.type}"
            if spec.packed:
                field.options.packed = True
            if spec.default is not None:
                field.default_value = spec.default
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file) if not hasattr(pool, "AddSerializedFile") else pool.AddSerializedFile(
        file.SerializeToString()
    )
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
        for name in FIELDS
    }


_read_table()
CLASSES: Final[dict[str, Any]] = _build()


def new(message: str) -> Message:
    """An empty message of this schema."""
    return CLASSES[message]()


def is_message(type_name: str) -> bool:
    """Whether a field's type is a message of this schema, rather than a scalar or an enum."""
    return type_name in FIELDS
