"""The featd.toml that `featd init` writes: every key with its default, and one line that explains it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from string import Template

CATALOG_URL = "sqlite:///featd.db"
STORE = "features"


@dataclass(frozen=True, slots=True)
class Choices:
    """What `featd init` was told; the rest of the file is defaults."""

    images: tuple[str, ...]
    net: str = "gist"
    weights: str | None = None
    blobs: tuple[str, ...] = ()
    preset: str = "fast"
    url: str = CATALOG_URL
    store: str = STORE


def render(choices: Choices) -> str:
    """The file's text."""
    roots = "\n".join(
        _ROOT.substitute(path=toml_string(path)) if at == 0 else f"[[roots]]\npath = {toml_string(path)}\n"
        for at, path in enumerate(choices.images)
    )
    blobs = ", ".join(toml_string(blob) for blob in choices.blobs)
    return _FILE.substitute(
        url=toml_string(choices.url),
        store=toml_string(choices.store),
        roots=roots,
        net=toml_string(choices.net),
        weights=f"weights = {toml_string(choices.weights)}"
        if choices.weights
        else '# weights = "model.caffemodel"',
        blobs=f"blobs = [{blobs}]" if choices.blobs else '# blobs = ["fc7"]',
        preset=toml_string(choices.preset),
    )


def toml_string(text: str) -> str:
    """A TOML basic string. JSON's escapes are TOML's, but for DEL, which JSON leaves as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


_ROOT = Template("""\
# One section for each folder of images. featd only reads there.
[[roots]]
path = $path
# What is an image: patterns under the root, whatever the case; ** is any number of folders.
include = ["**/*.jpg", "**/*.jpeg", "**/*.png", "**/*.webp", "**/*.bmp", "**/*.tif", "**/*.tiff", "**/*.gif"]
# What is none, even if included.
exclude = []
# Take new files as they arrive.
watch = true
# Look at everything again after so many seconds.
rescan_seconds = 900.0
# A file found by a scan is taken when it has not changed for so long.
settle_seconds = 2.0
# Follow symbolic links, as long as they stay under the root.
follow_symlinks = false
""")

_FILE = Template("""\
# featd's configuration. Relative paths are relative to this file. A key that is left out has the value shown
# here, unless its comment says otherwise. The environment overrides single keys: FEATD_WORKERS__BATCH=8.

[catalog]
# sqlite:///FILE, or for several hosts postgresql+psycopg://user@host/db (its password from PGPASSFILE).
url = $url

[store]
# The folder of the shards.
path = $store
# A shard is sealed when it has so many vectors,
shard_rows = 4096
# or so many bytes,
shard_bytes = 268_435_456
# or its first images have waited so many seconds, or nothing is left to do. A crash repeats at most what is unsealed.
shard_seconds = 30.0
# none, gzip, or zstd (whose readers need the package hdf5plugin).
compression = "none"
# float32 or float16.
dtype = "float32"

$roots
[model]
# caffe, onnxruntime, or auto: real Caffe where it is installed and runs this net, else ONNX Runtime.
engine = "auto"
# gist, the built-in net, or the path of a deploy.prototxt, which needs the two keys below.
net = $net
# The net's .caffemodel.
$weights
# The blobs to extract; the first is /feats in the shards. `featd net FILE` lists what there is.
$blobs

[preprocess]
# How other vectors were made that yours are to be compared with: fast (featd's own way), caffe-transform (Caffe's
# tools, C++) or pycaffe (caffe.io.Transformer, Python). It decides the keys below that are commented out.
preset = $preset
# center, or ten: the mean of the vectors of four corners, the centre and their mirror images; ten times the work.
crops = "center"
# A picture of more pixels is not decoded: decode.too_large.
max_pixels = 100_000_000
# The rest is the preset's and the net's own unless set; these are a Caffe net's with preset fast.
# Turn pictures as their EXIF says: apply or ignore (caffe-transform, pycaffe).
# orientation = "apply"
# warp: to size, whatever the shape. short_side: the shorter side to size. Then the centre is cropped.
# resize = "warp"
# linear, area, cubic or nearest.
# interpolation = "linear"
# opencv: resize whole grey levels. skimage: in floats, as pycaffe does.
# arithmetic = "opencv"
# Height and width before the crop to the net's input (pycaffe: straight to the net's input).
# size = [256, 256]
# bgr, rgb or gray.
# channels = "bgr"
# Subtracted from each pixel: a value for each channel, or the path of a .npy or .binaryproto.
# mean = [104.0, 117.0, 123.0]
# Multiplied afterwards.
# scale = 1.0

[workers]
# auto: every GPU, or one cpu worker without any. Or a list: ["cuda:0", "cuda:1"], ["cpu", "cpu"].
devices = "auto"
# Images in one pass through the net.
batch = 32
# Decoding processes for each worker.
decoders = 2
# A worker that is silent for so long has lost its images to others.
lease_seconds = 60.0
# At a stop, a worker has so long to seal what it has in hand.
stop_seconds = 90.0

[retry]
# An image that could not be read so many times has failed.
max_errors = 3
# An image that crashed its process so many times, alone in it, has failed.
max_crashes = 2
# The wait after the first error; it doubles each time, up to an hour.
backoff_seconds = 30.0

[web]
# Reserved for a status page and metrics; nothing reads it yet.
enabled = false
listen = "127.0.0.1:8787"

[log]
# debug, info, warning or error.
level = "info"
# text, json (one object a line), journal (systemd's, with fields), or auto: journal under systemd, else text.
format = "auto"
""")
