"""The featd.toml that `featd init` writes: each key with its default and a comment."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from string import Template

CATALOG_URL = "sqlite:///featd.db"
STORE = "features"


@dataclass(frozen=True, slots=True)
class Choices:
    """The options of `featd init`; everything else in the file is a default."""

    images: tuple[str, ...]
    net: str = "gist"
    weights: str | None = None
    blobs: tuple[str, ...] = ()
    preset: str = "fast"
    l2: bool = False
    url: str = CATALOG_URL
    store: str = STORE


def render(choices: Choices) -> str:
    """The file's text."""
    from featd.config import DEFAULT_EXCLUDE, DEFAULT_INCLUDE

    roots = "\n".join(
        _ROOT.substitute(
            path=toml_string(path), include=_list(DEFAULT_INCLUDE), exclude=_list(DEFAULT_EXCLUDE)
        )
        if at == 0
        else f"[[roots]]\npath = {toml_string(path)}\n"
        for at, path in enumerate(choices.images)
    )
    blobs = ", ".join(toml_string(blob) for blob in choices.blobs)
    return _FILE.substitute(
        schema=SCHEMA,
        url=toml_string(choices.url),
        store=toml_string(choices.store),
        roots=roots,
        net=toml_string(choices.net),
        weights=f"weights = {toml_string(choices.weights)}"
        if choices.weights
        else '# weights = "model.caffemodel"',
        blobs=f"blobs = [{blobs}]" if choices.blobs else '# blobs = ["fc7"]',
        preset=toml_string(choices.preset),
        l2=str(choices.l2).lower(),
    )


def _list(texts: Sequence[str]) -> str:
    """A TOML array, over lines of 120 characters."""
    lines = textwrap.wrap(
        ", ".join(map(toml_string, texts)), 118, break_long_words=False, break_on_hyphens=False
    )
    return "[\n" + "".join(f"  {line}\n" for line in lines) + "]"


def toml_string(text: str) -> str:
    """A TOML basic string. JSON has the same escapes, except for DEL, which JSON does not escape."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


_ROOT = Template("""\
# One section for each folder of images. featd only reads these folders.
[[roots]]
path = $path
# What the catalog calls this folder, if not by its path: so it can have another path on each host. Never change it: the
# images would be those of another root. A folder that the catalog has by its path keeps that as its name.
# name = "photos"
# Which files are images: patterns below the root, ignoring case. ** means any number of folders.
# HEIC needs the extra `heif`.
include = $include
# Which files are not, even if they match `include`: the thumbnails, bins and snapshots of NAS systems and desktops.
exclude = $exclude
# Take new files as they arrive.
watch = true
# Seconds between two scans of everything.
rescan_seconds = 900.0
# A file found by a scan is taken when it has not changed for so many seconds.
settle_seconds = 2.0
# When more than half of a root's images vanish at once, they become gone only after so many seconds.
gone_after_seconds = 3600.0
# Follow symbolic links, as long as they stay under the root.
follow_symlinks = false
""")

SCHEMA = "featd.schema.json"
"""The file beside featd.toml from which editors know its keys."""

_FILE = Template("""\
#:schema ./$schema
# The configuration of featd. Relative paths are relative to this file. The values are the defaults, unless a comment
# says otherwise. Environment variables override single keys: FEATD_WORKERS__BATCH=8.

[catalog]
# sqlite:///FILE, or, for several hosts, postgresql+psycopg://user@host/db (with the password in PGPASSFILE).
url = $url
# For so many days a reader can go on from a token of `featd changes`.
feed_days = 30.0
# Rows of images that have been gone for so many days are deleted. 0: never. If this is not set: after 365 days, in
# catalogs of 10 million rows and more.
# purge_gone_days = 365.0

[store]
# The folder of the shards.
path = $store
# A shard is sealed when it has this many vectors.
shard_rows = 4096
# It is also sealed when it has this many bytes.
shard_bytes = 268_435_456
# It is also sealed when its first images have waited this many seconds. After a crash, only images that were not sealed
# yet are processed again.
shard_seconds = 30.0
# Where nothing is left to do, a shard stays open for this many seconds, for more images (in a drain: not at all).
idle_seconds = 1.0
# none, gzip, or zstd (readers then need the package hdf5plugin).
compression = "none"
# float32 or float16.
dtype = "float32"
# Divide each vector by its Euclidean length, so that inner products are cosines.
l2 = $l2
# Small shards are merged. The files of merged ones stay this many seconds, for readers that have opened them.
grace_seconds = 3600.0
# Images that have been gone for so many days lose their vectors.
keep_gone_days = 30.0
# Shards that the catalog does not know (a worker died, the catalog was restored) are moved to `unknown` in the store.
# They are removed after so many days.
keep_unknown_days = 7.0
# While the store's disk has fewer free bytes than this, workers claim nothing, no shards are merged, and shards that
# the catalog does not know are removed at once. 0: fill the disk.
min_free = 1_073_741_824
# Every shard is compared with its checksum once in so many days, in the background. 0: never.
verify_days = 30.0

[host]
# Where the processes of a host leave what they have in hand. Unless set: `run` in the store. Where the store is on a
# slow network, a folder on a local disk, for this instance alone.
# state = "/var/lib/featd/run"

$roots
[model]
# caffe, onnxruntime, or auto: real Caffe where it is installed and runs this net, else ONNX Runtime.
engine = "auto"
# gist (built in), the path of a deploy.prototxt, which needs the two keys below, or of a .onnx.
net = $net
# The net's .caffemodel.
$weights
# The blobs to extract; the first one is /feats in the shards. `featd net FILE` lists them. A .onnx with a single output
# needs none.
$blobs
# On GPUs: float32; or tf32 or float16, which give slightly other vectors (untested on hardware).
precision = "float32"

[preprocess]
# How pictures are prepared: fast, or, to agree with vectors made elsewhere, caffe-transform (Caffe's C++ tools),
# pycaffe (caffe.io.Transformer in Python), imagenet (torchvision), clip (OpenAI's) or dino (DINO, DINOv2). The preset
# decides the keys below that are commented out.
preset = $preset
# center, or ten: the mean vector of the four corners, the centre and their mirror images, at ten times the work.
crops = "center"
# Decode large JPEGs at a half, a quarter or an eighth of their size where that is at least `size`: faster, and slightly
# other vectors.
reduce_jpeg = false
# A picture with more pixels is not decoded and fails with decode.too_large.
max_pixels = 100_000_000
# Unless set, these keys come from the preset and the net; shown are the values of a Caffe net with preset fast.
# Rotate pictures as their EXIF says: apply, or ignore (all presets but fast).
# orientation = "apply"
# warp: stretch to size. short_side: scale the shorter side to size. The centre is cropped afterwards.
# resize = "warp"
# linear, area, cubic or nearest.
# interpolation = "linear"
# opencv: resize in whole grey levels. skimage: resize in floating point, as pycaffe does. pillow: resize with
# antialiasing, as torchvision does.
# arithmetic = "opencv"
# Height and width before the crop to the net's input (pycaffe: the net's input itself).
# A net that takes any size gets a smaller one if this is smaller.
# size = [256, 256]
# Height and width of the net's input, cut from the centre: only for another one than the definition's.
# crop = [227, 227]
# bgr, rgb or gray; for a net of four channels bgra or rgba, of two gray_alpha.
# channels = "bgr"
# Subtracted from each pixel: one value per channel, or the path of a .npy or .binaryproto.
# mean = [104.0, 117.0, 123.0]
# Multiplied afterwards.
# scale = 1.0
# Divided by afterwards: one value, or one per channel, for pixels from 0 to 255 as the mean is.
# std = 1.0

[workers]
# auto: every GPU; without GPUs, as many workers on the CPU as `featd bench` found best, else one. Or a list:
# ["cuda:0", "cuda:1"], ["cpu", "cpu"], or UUIDs from `nvidia-smi -L`, of GPUs ("GPU-...") and MIG devices ("MIG-...").
devices = "auto"
# Workers on each of these devices.
per_device = 1
# Images per pass through the net. auto: as `featd bench` found best, else 32. Halved by itself where memory is short.
batch = "auto"
# Threads of each worker's net on the CPU. auto: as `featd bench` found best, else the cores divided among the workers.
threads = "auto"
# Decoding processes per worker. auto: as `featd bench` found best, else 2.
decoders = "auto"
# After this many seconds without a renewal, a worker loses its images to others.
lease_seconds = 60.0
# Seconds that a worker has at a stop to seal what it has in hand.
stop_seconds = 90.0
# A device whose workers have died so many times in a row, without recording a vector, is not used until the next reload
# or restart. 0: it is tried again for ever.
set_aside_after = 5

[retry]
# After this many read errors an image has failed.
max_errors = 3
# After this many crashes of a process with only this image in hand the image has failed.
max_crashes = 2
# Seconds to wait after the first error; doubled after each further one, up to an hour.
backoff_seconds = 30.0

[search]
# Keep the index of `featd search` and `featd duplicates` up to date while featd runs; else they do it when they are
# asked.
enabled = false

[web]
# A page that shows whether all is well, and metrics, in a process of its own. Needs `pip install 'featd[web]'`.
enabled = false
# Where: an address of this machine and a port. Other machines reach it only at another address than 127.0.0.1.
listen = "127.0.0.1:8787"
# What a browser or a program must show: 16 letters and digits or more. Needed at any address but 127.0.0.1 and [::1].
token = ""

[log]
# debug, info, warning or error.
level = "info"
# text, json (one object per line), journal (systemd's, with fields), or auto: journal under systemd, else text.
format = "auto"
""")
