"""Layers that move, repeat or pick numbers: Crop, Tile, Permute, ShuffleChannel, Upsample, Interp."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from featd.errors import ModelError
from featd.net.graph import Layer, Shape
from featd.net.layers.combine import cut
from featd.net.layers.registry import Builder, Lowered, axis_of, register


def _crop_offsets(layer: Layer, bottoms: Sequence[Shape]) -> dict[int, int]:
    """Axis -> where the crop starts, of all axes that are cropped."""
    param, rank = layer.param.crop_param, len(bottoms[0])
    start = axis_of(layer, param.axis, rank)
    offsets = list(param.offset) or [0]
    if len(offsets) not in (1, rank - start):
        raise ModelError(f"{layer}: has {len(offsets)} offset for {rank - start} axes from axis {start}")
    if len(bottoms[1]) < rank:
        raise ModelError(
            f"{layer}: its second bottom {bottoms[1]} has fewer axes than its first {bottoms[0]}"
        )
    return {axis: offsets[0 if len(offsets) == 1 else axis - start] for axis in range(start, rank)}


def _crop_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    top = list(bottoms[0])
    for axis, offset in _crop_offsets(layer, bottoms).items():
        top[axis] = bottoms[1][axis]
        if offset + top[axis] > bottoms[0][axis]:
            raise ModelError(
                f"{layer}: {top[axis]} from offset {offset} reach past the {bottoms[0][axis]} entries of axis {axis}"
            )
    return [tuple(top)]


@register("Crop", _crop_shapes, bottoms=(2, 2))
def crop(onnx: Builder, at: Lowered) -> list[str]:
    """The second bottom gives the size only."""
    ranges = {
        axis: (offset, offset + at.tops[0][axis])
        for axis, offset in _crop_offsets(at.layer, at.shapes).items()
        if at.tops[0][axis] != at.shapes[0][axis]
    }
    return [cut(onnx, at.bottoms[0], ranges) if ranges else at.bottoms[0]]


def _tile_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    param, bottom = layer.param.tile_param, bottoms[0]
    axis = axis_of(layer, param.axis, len(bottom))
    if param.tiles < 1:
        raise ModelError(f"{layer}: tiles must be at least 1")
    return [(*bottom[:axis], bottom[axis] * param.tiles, *bottom[axis + 1 :])]


@register("Tile", _tile_shapes)
def tile(onnx: Builder, at: Lowered) -> list[str]:
    param = at.layer.param.tile_param
    repeats = np.ones(len(at.shapes[0]), np.int64)
    repeats[axis_of(at.layer, param.axis, len(repeats))] = param.tiles
    return [onnx.node("Tile", [at.bottoms[0], onnx.constant(repeats)])]


def _order(layer: Layer, rank: int) -> list[int]:
    """The named axes first, then the others in their order."""
    order = [int(axis) for axis in layer.param.permute_param.order]
    if len(set(order)) < len(order) or max(order, default=0) >= rank:
        raise ModelError(f"{layer}: order {order} does not name different axes of a blob of {rank}")
    return order + [axis for axis in range(rank) if axis not in order]


def _permute_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    return [tuple(bottoms[0][axis] for axis in _order(layer, len(bottoms[0])))]


@register("Permute", _permute_shapes)
def permute(onnx: Builder, at: Lowered) -> list[str]:
    return [onnx.node("Transpose", at.bottoms, perm=_order(at.layer, len(at.shapes[0])))]


def _shuffle_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    group = layer.param.shuffle_channel_param.group
    if len(bottoms[0]) < 2 or group < 1 or bottoms[0][1] % group:
        raise ModelError(f"{layer}: group {group} does not divide the channels of its bottom {bottoms[0]}")
    return [bottoms[0]]


@register("ShuffleChannel", _shuffle_shapes)
def shuffle_channel(onnx: Builder, at: Lowered) -> list[str]:
    """Channels, as rows of a table of `group` rows, read column by column."""
    group = at.layer.param.shuffle_channel_param.group
    order = np.arange(at.shapes[0][1]).reshape(group, -1).T.ravel()
    return [pick(onnx, at.bottoms[0], 1, order)]


def pick(onnx: Builder, tensor: str, axis: int, order: npt.NDArray[np.int64]) -> str:
    return onnx.node("Gather", [tensor, onnx.constant(order.astype(np.int64))], axis=axis)


def _upsample_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    param, bottom = layer.param.upsample_param, bottoms[0]
    if _by_mask(layer):
        if len(bottoms) != 2 or len(bottom) != 4 or bottoms[1] != bottom:
            raise ModelError(f"{layer}: needs a bottom of 4 axes and the mask of its pooling, has {bottoms}")
        height = param.upsample_h or bottom[2] * (param.scale_h or param.scale) - param.pad_out_h
        width = param.upsample_w or bottom[3] * (param.scale_w or param.scale) - param.pad_out_w
        return [(*bottom[:2], height, width)]
    if param.scale < 1 or param.dims_num not in (3, 4) or len(bottom) != param.dims_num:
        raise ModelError(
            f"{layer}: scale {param.scale} of a blob of {param.dims_num} axes does not fit its bottom {bottom}"
        )
    return [(*bottom[:2], *(size * param.scale for size in bottom[2:]))]


def _by_mask(layer: Layer) -> bool:
    """Whether it is SegNet's: only that one has these settings."""
    param = layer.param.upsample_param
    names = ("upsample_h", "upsample_w", "scale_h", "scale_w", "pad_out_h", "pad_out_w")
    return any(map(param.HasField, names))


@register("Upsample", _upsample_shapes, bottoms=(1, 2))
def upsample(onnx: Builder, at: Lowered) -> list[str]:
    """Every number `scale` times along height and width (nearest neighbour); a mask is not used. SegNet's puts each
    number where its mask says."""
    if _by_mask(at.layer):
        return [unpool(onnx, at)]
    tensor = at.bottoms[0]
    for axis in range(2, len(at.shapes[0])):
        order = np.arange(at.shapes[0][axis]).repeat(at.layer.param.upsample_param.scale)
        tensor = pick(onnx, tensor, axis, order)
    return [tensor]


def unpool(onnx: Builder, at: Lowered) -> str:
    """Zeros, and each number of the first bottom at its place in the plane that the second bottom, a mask, gives."""
    (_, channels, height, width), top = at.shapes[0], at.tops[0]
    rows = (1, channels, height * width)
    values = onnx.reshape(at.bottoms[0], rows, at.fixed[0])
    mask = onnx.reshape(at.bottoms[1], rows, at.fixed[1])
    places = onnx.node("Cast", [mask], to=7)
    if at.doubtful:
        # A window of only NaN has the place -1, and Caffe writes past the plane: NaN, so that the image has no vector.
        nowhere = onnx.node("Less", [mask, onnx.scalar(0.0)])
        values = onnx.node("Where", [nowhere, onnx.scalar(np.nan), values])
    most = onnx.node("ReduceMax", [values], axes=[2], keepdims=1)
    zeros = onnx.node("Cast", [onnx.node("Less", [most, most])], to=1)  # also where it is not finite
    plane = onnx.node("Expand", [zeros, onnx.constant(np.array([1, 1, top[2] * top[3]], np.int64))])
    return onnx.reshape(onnx.node("ScatterElements", [plane, places, values], axis=2), top, at.fixed[0])


def _interp_inside(layer: Layer, bottom: Shape) -> tuple[int, int]:
    """Height and width of the bottom, cut by its (negative) padding."""
    param = layer.param.interp_param
    if len(bottom) != 4:
        raise ModelError(f"{layer}: needs a bottom of 4 axes, has {bottom}")
    if param.pad_beg > 0 or param.pad_end > 0:
        raise ModelError(f"{layer}: pad_beg and pad_end only cut: they must not be above zero")
    height, width = (size + param.pad_beg + param.pad_end for size in bottom[2:])
    if height < 1 or width < 1:
        raise ModelError(f"{layer}: pad_beg and pad_end cut away all of its bottom {bottom}")
    return height, width


def _interp_shapes(layer: Layer, bottoms: Sequence[Shape]) -> list[Shape]:
    param = layer.param.interp_param
    shrinks, zooms, sized = (param.HasField(name) for name in ("shrink_factor", "zoom_factor", "height"))
    out = list(_interp_inside(layer, bottoms[0]))
    if len(bottoms) > 1 and not (shrinks or zooms or sized):
        if len(bottoms[1]) != 4:
            raise ModelError(f"{layer}: its second bottom gives height and width, but has shape {bottoms[1]}")
        out = list(bottoms[1][2:])
    elif sized and param.HasField("width") and not (shrinks or zooms):
        out = [param.height, param.width]
    elif shrinks or zooms:
        if min(param.shrink_factor, param.zoom_factor) < 1:
            raise ModelError(f"{layer}: shrink_factor and zoom_factor must be at least 1")
        out = [(size - 1) // param.shrink_factor + 1 for size in out]
        out = [size + (size - 1) * (param.zoom_factor - 1) for size in out]
    else:
        raise ModelError(f"{layer}: needs height and width, or shrink_factor or zoom_factor")
    return [(*bottoms[0][:2], *out)]


@register("Interp", _interp_shapes, bottoms=(1, 2))
def interp(onnx: Builder, at: Lowered) -> list[str]:
    """Bilinear with aligned corners (DeepLab, PSPNet), as two products with the weights of each row and column."""
    param = at.layer.param.interp_param
    inside = _interp_inside(at.layer, at.shapes[0])
    tensor = at.bottoms[0]
    if inside != at.shapes[0][2:]:
        tensor = cut(onnx, tensor, {2 + at: (-param.pad_beg, -param.pad_beg + inside[at]) for at in (0, 1)})
    rows = onnx.constant(_corners(inside[0], at.tops[0][2]))
    columns = onnx.constant(np.ascontiguousarray(_corners(inside[1], at.tops[0][3]).T))
    return [onnx.node("MatMul", [onnx.node("MatMul", [rows, tensor]), columns])]


def _corners(size: int, out: int) -> npt.NDArray[np.float32]:
    """(out, size): the weight of each old entry in each new one."""
    step = np.float32(size - 1) / np.float32(out - 1) if out > 1 else np.float32(0)
    place = np.arange(out, dtype=np.float32) * step
    low = np.minimum(place.astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    part = place - low.astype(np.float32)
    weights = np.zeros((out, size), np.float32)
    np.add.at(weights, (np.arange(out), low), 1 - part)
    np.add.at(weights, (np.arange(out), high), part)
    return weights
