"""The table of Caffe's messages, as far as featd reads them: names, numbers, types, defaults; for `schema`.

Of every layer type that featd lowers all settings are here but `engine`; other types' `..._param` are not.
"""

from __future__ import annotations

from typing import Final

# A message is a line without indent. A field is `number name type`, `*` after the type: repeated, `!`: repeated
# and packed, `= x`: its default. An enum is `enum Name VALUE VALUE=number ...`, counted from 0.
TABLE: Final = """
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
ArgMaxParameter
  1 out_max_val bool = false
  2 top_k uint32 = 1
  3 axis int32
BatchNormParameter
  1 use_global_stats bool
  2 moving_average_fraction float = 0.999
  3 eps float = 1e-5
BNParameter
  enum BNMode LEARN INFERENCE
  1 slope_filler FillerParameter
  2 bias_filler FillerParameter
  3 momentum float = 0.9
  4 eps float = 1e-5
  5 frozen bool = false
  1001 scale_filler FillerParameter
  1002 shift_filler FillerParameter
  1003 bn_mode .BNMode
BiasParameter
  1 axis int32 = 1
  2 num_axes int32 = 1
  3 filler FillerParameter
ClipParameter
  1 min float
  2 max float
ConcatParameter
  1 concat_dim uint32 = 1
  2 axis int32 = 1
ConvolutionParameter
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
  16 axis int32 = 1
  17 force_nd_im2col bool = false
  18 dilation uint32*
CropParameter
  1 axis int32 = 2
  2 offset uint32*
DropoutParameter
  1 dropout_ratio float = 0.5
DummyDataParameter
  1 data_filler FillerParameter*
  2 num uint32*
  3 channels uint32*
  4 height uint32*
  5 width uint32*
  6 shape BlobShape*
EltwiseParameter
  enum EltwiseOp PROD SUM MAX
  1 operation .EltwiseOp = SUM
  2 coeff float*
  3 stable_prod_grad bool = true
ELUParameter
  1 alpha float = 1
EmbedParameter
  1 num_output uint32
  2 input_dim uint32
  3 bias_term bool = true
  4 weight_filler FillerParameter
  5 bias_filler FillerParameter
ExpParameter
  1 base float = -1
  2 scale float = 1
  3 shift float = 0
FlattenParameter
  1 axis int32 = 1
  2 end_axis int32 = -1
FlipParameter
  1 flip_width bool = true
  2 flip_height bool = false
InnerProductParameter
  1 num_output uint32
  2 bias_term bool = true
  3 weight_filler FillerParameter
  4 bias_filler FillerParameter
  5 axis int32 = 1
  6 transpose bool = false
InputParameter
  1 shape BlobShape*
InterpParameter
  1 height int32 = 0
  2 width int32 = 0
  3 zoom_factor int32 = 1
  4 shrink_factor int32 = 1
  5 pad_beg int32 = 0
  6 pad_end int32 = 0
LogParameter
  1 base float = -1
  2 scale float = 1
  3 shift float = 0
LRNParameter
  enum NormRegion ACROSS_CHANNELS WITHIN_CHANNEL
  1 local_size uint32 = 5
  2 alpha float = 1
  3 beta float = 0.75
  4 norm_region .NormRegion
  5 k float = 1
MemoryDataParameter
  1 batch_size uint32
  2 channels uint32
  3 height uint32
  4 width uint32
MVNParameter
  1 normalize_variance bool = true
  2 across_channels bool = false
  3 eps float = 1e-9
NormalizeParameter
  1 across_spatial bool = true
  2 scale_filler FillerParameter
  3 channel_shared bool = true
  4 eps float = 1e-10
ParameterParameter
  1 shape BlobShape
PermuteParameter
  1 order uint32*
PoolingParameter
  enum PoolMethod MAX AVE STOCHASTIC
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
ReductionParameter
  enum ReductionOp SUM=1 ASUM=2 SUMSQ=3 MEAN=4
  1 operation .ReductionOp = SUM
  2 axis int32 = 0
  3 coeff float = 1
ReLU6Parameter
  1 negative_slope float = 0
  2 threshold float = 6
ReLUParameter
  1 negative_slope float = 0
ReorgParameter
  1 stride uint32
  2 reverse bool = false
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
SeLUParameter
  1 lambda float = 1.050700987
  2 alpha float = 1.67326324
ShuffleChannelParameter
  1 group uint32 = 1
SigmoidParameter
SliceParameter
  1 slice_dim uint32 = 1
  2 slice_point uint32*
  3 axis int32 = 1
SoftmaxParameter
  2 axis int32 = 1
SPPParameter
  enum PoolMethod MAX AVE STOCHASTIC
  1 pyramid_height uint32
  2 pool .PoolMethod
SwishParameter
  1 beta float = 1
TanHParameter
ThresholdParameter
  1 threshold float = 0
TileParameter
  1 axis int32 = 1
  2 tiles int32
UnpoolingParameter
  enum UnpoolMethod MAX AVE TILE
  1 unpool .UnpoolMethod
  2 pad uint32 = 0
  3 pad_h uint32 = 0
  4 pad_w uint32 = 0
  5 kernel_size uint32
  6 kernel_h uint32
  7 kernel_w uint32
  8 stride uint32 = 1
  9 stride_h uint32
  10 stride_w uint32
  11 unpool_size uint32 = 0
  12 unpool_h uint32 = 0
  13 unpool_w uint32 = 0
UpsampleParameter
  1 scale int32 = 1
  2 dims_num int32 = 4
  1003 upsample_h uint32
  1004 upsample_w uint32
  1005 scale_h uint32
  1006 scale_w uint32
  1007 pad_out_h uint32 = 0
  1008 pad_out_w uint32 = 0
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
  103 argmax_param ArgMaxParameter
  104 concat_param ConcatParameter
  106 convolution_param ConvolutionParameter
  108 dropout_param DropoutParameter
  109 dummy_data_param DummyDataParameter
  110 eltwise_param EltwiseParameter
  111 exp_param ExpParameter
  117 inner_product_param InnerProductParameter
  118 lrn_param LRNParameter
  119 memory_data_param MemoryDataParameter
  120 mvn_param MVNParameter
  121 pooling_param PoolingParameter
  122 power_param PowerParameter
  123 relu_param ReLUParameter
  124 sigmoid_param SigmoidParameter
  125 softmax_param SoftmaxParameter
  126 slice_param SliceParameter
  127 tanh_param TanHParameter
  128 threshold_param ThresholdParameter
  131 prelu_param PReLUParameter
  132 spp_param SPPParameter
  133 reshape_param ReshapeParameter
  134 log_param LogParameter
  135 flatten_param FlattenParameter
  136 reduction_param ReductionParameter
  137 embed_param EmbedParameter
  138 tile_param TileParameter
  139 batch_norm_param BatchNormParameter
  140 elu_param ELUParameter
  141 bias_param BiasParameter
  142 scale_param ScaleParameter
  143 input_param InputParameter
  144 crop_param CropParameter
  145 parameter_param ParameterParameter
  147 swish_param SwishParameter
  148 clip_param ClipParameter
  202 permute_param PermuteParameter
  206 norm_param NormalizeParameter
  500 upsample_param UpsampleParameter
  503 relu6_param ReLU6Parameter
  10001 interp_param InterpParameter
  10003 bn_param BNParameter
  10004 flip_param FlipParameter
  10005 reorg_param ReorgParameter
  10006 selu_param SeLUParameter
  10007 unpooling_param UnpoolingParameter
  10002 shuffle_channel_param ShuffleChannelParameter
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
# Blocks of layers that only forks have, with numbers above 10000, have another number in every fork.
