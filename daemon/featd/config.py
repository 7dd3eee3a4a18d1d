"""The configuration: one TOML file, checked and frozen. Unknown keys and bad values are errors with their dotted path.

Environment variables override single keys: FEATD_WORKERS__BATCH=8.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from featd.config_faults import AUTO, ENV_PREFIX, Fault, check_variables, line_of, parsed, source_of, without
from featd.config_file import find, read_text
from featd.errors import ConfigError
from featd.net.onnx_file.suffix import is_onnx
from featd.roots import Globs
from featd.states import RetryPolicy

DEFAULT_INCLUDE = (
    *(
        "**/*.jpg",
        "**/*.jpeg",
        "**/*.jpe",
        "**/*.jfif",
        "**/*.png",
        "**/*.webp",
        "**/*.bmp",
        "**/*.tif",
        "**/*.tiff",
    ),
    *("**/*.gif", "**/*.ppm", "**/*.pgm", "**/*.pbm", "**/*.pnm", "**/*.heic", "**/*.heif", "**/*.avif"),
)
DEFAULT_EXCLUDE = (
    *("**/@eaDir", "**/#recycle", "**/#snapshot", "**/@Recycle", "**/@Recently-Snapshot", "**/.@__thumb"),
    *(
        "**/$RECYCLE.BIN",
        "**/System Volume Information",
        "**/.Trash*",
        "**/.stversions",
        "**/.snapshot",
        "**/.zfs",
    ),
)
"""Thumbnails, bins and snapshots that NAS systems, desktops and Syncthing keep beside the images."""
BUILT_IN_NETS = ("gist",)


_Seconds = Annotated[float, Field(gt=0, le=1e9)]
"""Up to about 30 years, which may stand for "never"; the clocks of the databases end soon after."""
_Count = Annotated[int, Field(gt=0, le=10**9)]
_MOST_BYTES = 2**60
"""Sums of a few of these fit into the databases' integers."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _as_people_write(cls, values: object) -> object:
        """`channels = "BGR"` and `blobs = "fc7"` are unambiguous: upper case in a choice, one text for a list."""
        if not isinstance(values, dict):
            return values
        return {key: _understood(value, cls.model_fields.get(key)) for key, value in values.items()}

    @field_validator("*", mode="before")
    @classmethod
    def _no_zero_byte(cls, value: object) -> object:
        """Neither paths nor databases can have one, and calls of the system raise what nobody expects."""
        for text in value if isinstance(value, list | tuple) else (value,):
            if isinstance(text, str) and "\0" in text:
                raise ValueError("must not contain \\u0000")
        return value


_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def _expanded(found: re.Match[str]) -> str:
    """The value of a variable of the environment; ValueError where it is not set and has no default here."""
    name, default = found.groups()
    value = os.environ.get(name) or default
    if value is None:
        raise ValueError(f"the environment variable {name} is not set: set it, or write ${{{name}:-DEFAULT}}")
    return value


def _understood(value: object, field: FieldInfo | None) -> object:
    """`value` as a field's choice or list, where it can only be meant so; else as it is."""
    if field is None or not isinstance(value, str):
        return value
    value = _VARIABLE.sub(_expanded, value)
    kinds = get_args(field.annotation) or ()
    choices = (
        kinds if get_origin(field.annotation) is Literal else [c for kind in kinds for c in get_args(kind)]
    )
    plain = {str(choice).replace("_", "-"): choice for choice in choices if isinstance(choice, str)}
    if (choice := plain.get(value.strip().lower().replace("_", "-"))) is not None:
        return choice
    return (value,) if field.annotation == tuple[str, ...] else value


class CatalogConfig(_Section):
    url: str = "sqlite:///featd.db"
    feed_days: Annotated[float, Field(ge=0, le=1e6)] = 30.0
    purge_gone_days: Annotated[float, Field(ge=0, le=1e6)] | None = None
    """0: never. None: 365 where the catalog has many rows (featd.janitor.purge), else never."""


class StoreConfig(_Section):
    path: Path = Path("features")
    shard_rows: _Count = 4096
    shard_bytes: Annotated[int, Field(gt=0, le=_MOST_BYTES)] = 268_435_456
    shard_seconds: _Seconds = 30.0
    idle_seconds: Annotated[float, Field(ge=0, le=1e9)] = 1.0
    compression: Literal["none", "gzip", "zstd"] = "none"
    l2: bool = False
    dtype: Literal["float32", "float16"] = "float32"
    grace_seconds: Annotated[float, Field(ge=0, le=1e9)] = 3600.0
    keep_gone_days: Annotated[float, Field(ge=0, le=1e6)] = 30.0
    keep_unknown_days: Annotated[float, Field(ge=0, le=1e6)] = 7.0
    min_free: Annotated[int, Field(ge=0, le=_MOST_BYTES)] = 1_073_741_824
    verify_days: Annotated[float, Field(ge=0, le=1e6)] = 30.0


class HostConfig(_Section):
    state: Path | None = None
    """The folder of the seats' folders; None: `run` in the store."""


class RootConfig(_Section):
    path: Path
    name: Annotated[str, Field(max_length=1024)] | None = None
    include: tuple[str, ...] = DEFAULT_INCLUDE
    exclude: tuple[str, ...] = DEFAULT_EXCLUDE
    watch: bool = True
    rescan_seconds: _Seconds = 900.0
    settle_seconds: Annotated[float, Field(ge=0, le=86_400)] = 2.0
    gone_after_seconds: Annotated[float, Field(ge=0, le=1e9)] = 3600.0
    follow_symlinks: bool = False

    @field_validator("include", "exclude")
    @classmethod
    def _usable(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        Globs(patterns)
        return patterns

    @field_validator("path", mode="before")
    @classmethod
    def _not_empty(cls, path: object) -> object:
        if path == "":
            raise ValueError("name a folder")
        return path

    @field_validator("name")
    @classmethod
    def _printable(cls, name: str | None) -> str | None:
        if name is not None and (not name.isprintable() or name != name.strip() or not name.strip("/")):
            raise ValueError(
                "write a name that can be printed, or the path under which the catalog has the root"
            )
        return None if name is None else name.rstrip("/")

    @property
    def key(self) -> str:
        """What the catalog calls the root: its name, or its path."""
        return self.name or str(self.path)


class ModelConfig(_Section):
    engine: Literal["auto", "caffe", "onnxruntime"] = "auto"
    net: str = "gist"
    weights: Path | None = None
    blobs: tuple[str, ...] = ()
    precision: Literal["float32", "tf32", "float16"] = "float32"

    @property
    def built_in(self) -> bool:
        return self.net in BUILT_IN_NETS

    @property
    def is_onnx(self) -> bool:
        return is_onnx(self.net)

    @model_validator(mode="after")
    def _weights_for_files(self) -> ModelConfig:
        if self.built_in and self.weights is not None:
            raise ValueError(f"the built-in net {self.net!r} has its own weights: leave out `weights`")
        if self.is_onnx and self.weights is not None:
            raise ValueError("an ONNX file has its own weights: leave out `weights`")
        if self.is_onnx and self.engine == "caffe":
            raise ValueError('real Caffe runs no ONNX files: write engine = "auto" or "onnxruntime"')
        if self.precision != "float32" and self.engine == "caffe":
            raise ValueError(
                f'real Caffe computes in float32: for precision = "{self.precision}", write engine = "auto"'
            )
        if self.precision == "float16" and self.is_onnx:
            raise ValueError(
                "an ONNX file is run in the precision that it has: export the net in float16, and leave out `precision`"
            )
        whole = self.built_in or self.is_onnx
        if not whole and self.weights is None:
            raise ValueError("a net from a file needs `weights`, the path of its .caffemodel")
        if not whole and not self.blobs:
            raise ValueError(
                'name at least one blob to extract, for example blobs = ["fc7"]; `featd net` lists them'
            )
        if len(set(self.blobs)) != len(self.blobs):
            raise ValueError("a blob is named twice in `blobs`")
        return self


_TWO_SIZES = re.compile(r"\s*(\d{1,6})\s*(?:[xX×,]\s*(\d{1,6})\s*)?")
_NUMBER = r"-?\d{1,9}(?:\.\d{0,99})?"
_NUMBERS = re.compile(rf"\s*[\[(]?\s*{_NUMBER}(?:[\s,;]+{_NUMBER}){{0,3}}\s*[\])]?\s*", re.ASCII)
_Pixels = Annotated[int, Field(ge=1, le=16_384)]
_Pixel = Annotated[float, Field(ge=-1e6, le=1e6)]


class PreprocessConfig(_Section):
    """None means the value of the preset or of the net. gist has its own values; a Caffe net gets 256x256, BGR and
    ImageNet's mean, an ONNX file its own size, RGB and a scale of 1/255."""

    preset: Literal["fast", "caffe-transform", "pycaffe", "imagenet", "clip", "dino"] = "fast"
    orientation: Literal["apply", "ignore"] | None = None
    resize: Literal["warp", "short_side"] | None = None
    size: tuple[_Pixels, _Pixels] | None = None
    crop: tuple[_Pixels, _Pixels] | None = None
    interpolation: Literal["linear", "area", "cubic", "nearest"] | None = None
    arithmetic: Literal["opencv", "skimage", "pillow"] | None = None
    crops: Literal["center", "ten"] = "center"
    channels: Literal["bgr", "rgb", "gray", "bgra", "rgba", "gray_alpha"] | None = None
    mean: tuple[_Pixel, ...] | Path | None = None
    scale: _Pixel | None = None
    std: tuple[Annotated[float, Field(gt=0, le=1e6)], ...] | None = None
    reduce_jpeg: bool = False
    max_pixels: Annotated[int, Field(ge=1, le=2**40)] = 100_000_000

    @field_validator("size", "crop", mode="before")
    @classmethod
    def _square(cls, size: object) -> object:
        if isinstance(size, str) and (found := _TWO_SIZES.fullmatch(size)):
            size = [int(found[1]), int(found[2] or found[1])]
            if size[0] != size[1]:
                raise ValueError(
                    f"write a list, [height, width]: {size} for a height of {size[0]} and a width of {size[1]}"
                )
        return (size, size) if isinstance(size, int) and not isinstance(size, bool) else size

    @field_validator("mean", mode="before")
    @classmethod
    def _listed(cls, mean: object) -> object:
        if isinstance(mean, int | float) and not isinstance(mean, bool):
            mean = [mean]
        if isinstance(mean, str) and _NUMBERS.fullmatch(mean):  # "104,117,123" is no path
            mean = [float(number) for number in re.findall(r"[-\d.]+", mean)]
        if mean is None or isinstance(mean, Path) or (isinstance(mean, str) and mean):
            return mean
        if not isinstance(mean, list | tuple) or not all(_is_pixel(value) for value in mean):
            raise ValueError(
                "write a number, a list with one for each channel (to a million), or a path to a .npy or .binaryproto"
            )
        return mean

    @field_validator("std", mode="before")
    @classmethod
    def _one_or_more(cls, std: object) -> object:
        return [std] if isinstance(std, int | float) and not isinstance(std, bool) else std

    @model_validator(mode="after")
    def _of_0_to_255(self) -> PreprocessConfig:
        mean = self.mean if isinstance(self.mean, tuple) else ()
        if self.std and max(self.std) <= 1 and any(mean) and all(0 <= value <= 1 for value in mean):
            raise ValueError(
                "mean and std are for pixels from 0 to 1, and featd's are from 0 to 255: write 255 times both, mean ="
                f" {[round(255 * value, 6) for value in mean]}, std = {[round(255 * value, 6) for value in self.std]},"
                " and no scale"
            )
        return self

    @field_validator("scale")
    @classmethod
    def _not_zero(cls, scale: float | None) -> float | None:
        if scale == 0:
            raise ValueError("0 would make all pictures the same: leave it out, or write 1.0")
        return scale


def _is_pixel(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e6


_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_DEVICE = re.compile(rf"cpu|cuda:[0-9]{{1,4}}|(?:GPU|MIG)-{_UUID}|MIG-GPU-{_UUID}/[0-9]{{1,4}}/[0-9]{{1,4}}")
"""The last form is that of MIG devices of drivers before 470."""


class WorkersConfig(_Section):
    """What "auto" stands for: featd.sizing."""

    devices: Literal["auto"] | tuple[str, ...] = "auto"
    per_device: Annotated[int, Field(ge=1, le=64)] = 1
    batch: Literal["auto"] | Annotated[int, Field(ge=1, le=4096)] = "auto"
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=4096)] = "auto"
    decoders: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = "auto"
    lease_seconds: Annotated[float, Field(ge=2, le=86_400)] = 60.0
    stop_seconds: _Seconds = 90.0
    set_aside_after: Annotated[int, Field(ge=0, le=1_000_000)] = 5

    @field_validator("devices", mode="before")
    @classmethod
    def _listed(cls, devices: object) -> object:
        if isinstance(devices, str):
            return devices if devices == "auto" else (devices,)
        if not isinstance(devices, list | tuple) or not all(isinstance(device, str) for device in devices):
            raise ValueError('write "auto", or a list of texts: ["cuda:0", "cuda:1"], or ["cpu"]')
        return devices

    @field_validator("devices")
    @classmethod
    def _known(cls, devices: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if devices == "auto":
            return devices
        if not devices:
            raise ValueError('name at least one device, or write devices = "auto"')
        for device in devices:
            if not _DEVICE.fullmatch(device):
                raise ValueError(
                    f'unknown device {device!r}: write "cpu", "cuda:N", or the whole UUID of a GPU ("GPU-...") or of a'
                    ' MIG device ("MIG-...") from `nvidia-smi -L`'
                )
        return devices


class RetryConfig(_Section):
    max_errors: _Count = 3
    max_crashes: _Count = 2
    backoff_seconds: Annotated[float, Field(ge=0, le=1e9)] = 30.0

    @property
    def policy(self) -> RetryPolicy:
        return RetryPolicy(self.max_errors, self.max_crashes, self.backoff_seconds)


class SearchConfig(_Section):
    enabled: bool = False


LEAST_TOKEN = 16
"""Characters of a token, so that nobody guesses it."""


class WebConfig(_Section):
    enabled: bool = False
    listen: str = "127.0.0.1:8787"
    token: str = ""

    @property
    def address(self) -> str:
        """The IP address that the page listens at."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.listen.rpartition(":")[2])

    @field_validator("listen")
    @classmethod
    def _address_and_port(cls, listen: str) -> str:
        address, _, port = listen.rpartition(":")
        if address == "localhost":
            address = "127.0.0.1"
        try:
            found = ip_address(address[1:-1] if address[:1] == "[" and address[-1:] == "]" else address)
            if not port.isdecimal() or not 0 < int(port) < 65_536:
                raise ValueError(port)
        except ValueError:
            raise ValueError(
                f"{listen!r} is not an address and a port: write 127.0.0.1:8787, or [::1]:8787"
            ) from None
        return f"[{found}]:{int(port)}" if found.version == 6 else f"{found}:{int(port)}"

    @model_validator(mode="after")
    def _token_for_others(self) -> WebConfig:
        if self.token and (
            len(self.token) < LEAST_TOKEN or not self.token.isascii() or not self.token.isalnum()
        ):
            raise ValueError(
                f"token: write at least {LEAST_TOKEN} letters and digits, for example from `openssl rand -hex 16`"
            )
        if self.enabled and not self.token and not ip_address(self.address).is_loopback:
            raise ValueError(
                f"{self.listen} can be reached from other machines: set `token` too, or listen at 127.0.0.1"
            )
        return self


class LogConfig(_Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "text", "json", "journal"] = "auto"


class Settings(BaseSettings):
    """The whole configuration. Paths are absolute after `load`."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, allow_inf_nan=False
    )

    catalog: CatalogConfig = CatalogConfig()
    store: StoreConfig = StoreConfig()
    host: HostConfig = HostConfig()
    roots: tuple[RootConfig, ...] = ()
    model: ModelConfig = ModelConfig()
    preprocess: PreprocessConfig = PreprocessConfig()
    workers: WorkersConfig = WorkersConfig()
    retry: RetryConfig = RetryConfig()
    search: SearchConfig = SearchConfig()
    web: WebConfig = WebConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _own_preprocessing(self) -> Settings:
        if self.model.built_in and self.preprocess.preset != "fast":
            raise ValueError(
                f"preprocess.preset: {self.model.net} has its own preprocessing: leave out preset"
            )
        return self

    @property
    def state_folder(self) -> Path:
        """What the processes of a seat leave for each other is in a folder of its name in here."""
        return self.host.state or self.store.path / "run"

    def by_key(self) -> dict[str, Any]:
        """The values by dotted key, such as `workers.batch`; `roots` is one key."""
        sections = self.model_dump()
        keys = {"roots": sections.pop("roots")}
        for section, values in sections.items():
            keys |= {f"{section}.{key}": value for key, value in values.items()}
        return keys

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The environment overrides the file, whose content comes as init values.
        return (env_settings, init_settings)


def places(roots: Iterable[RootConfig]) -> dict[str, str]:
    """Where roots are on this host: what the catalog calls each -> its folder."""
    return {root.key: str(root.path) for root in roots}


def password_is_readable(settings: Settings, file: Path) -> bool:
    """Whether everybody on this machine can read the database's password in this configuration file. OSError."""
    has_one = re.match(r"[^/]*//[^/@]*:[^/@]+@|.*[?&]password=", settings.catalog.url)
    return has_one is not None and _all_may_read(file)


def token_is_readable(settings: Settings, file: Path) -> bool:
    """The same of the page's token, where this file has it."""
    token = settings.web.token
    return bool(token) and _all_may_read(file) and token in read_text(file)


def _all_may_read(file: Path) -> bool:
    return bool(file.stat().st_mode & stat.S_IROTH)


def load(explicit: Path | None = None, faults: list[str] | None = None) -> Settings:
    """Read, check and freeze the configuration. ConfigError names the file, the line, the dotted key and the reason.

    With `faults`, what is wrong and has no part in where catalog and store are is appended there, and keys get their
    default: for commands that only look.
    """
    path = find(explicit)
    text = read_text(path)
    document = parsed(path, text, faults)
    check_variables(_keys(), faults)
    if isinstance(document.get("roots"), dict):
        document["roots"] = [document["roots"]]  # [roots] in place of [[roots]]
    try:
        settings = _checked(path, text, document, faults)
    except ConfigError:
        raise
    except Exception as error:  # pydantic-settings wraps what it cannot parse from the environment
        raise ConfigError(f"environment: {error} (lists are written as in JSON: '[\"fc7\"]')") from None
    folder = path.absolute().parent
    for at, told in _nested(
        [
            folder / os.path.expanduser(root.path)  # noqa: PTH111 - which raises nothing where there is no such user
            for root in settings.roots
        ]
    ):
        line = line_of(text, ("roots", at, "path"))
        told = f"{path}: {f'line {line}: ' if line else ''}roots: {told}"
        if faults is None:
            raise ConfigError(told)
        faults.append(told)
    settings = _absolute(settings, path, text)
    for at, root in enumerate(settings.roots):
        if root.key in (other.key for other in settings.roots[:at]):
            line = line_of(text, ("roots", at, "name"))
            told = f"{path}: {f'line {line}: ' if line else ''}roots: two roots are called {root.key}"
            if faults is None:
                raise ConfigError(told)
            faults.append(told)
    return settings


def faults_of(explicit: Path | None = None) -> list[str]:
    """Everything that is wrong in the configuration, each with its file, line and key. ConfigError where there is no
    file to read."""
    read_text(find(explicit))
    faults: list[str] = []
    try:
        load(explicit, faults)
    except ConfigError as error:
        faults += error.faults
    return faults


def _checked(path: Path, text: str, document: dict[str, Any], faults: list[str] | None) -> Settings:
    """The settings of a document. With `faults`, without those of its keys that are wrong."""
    hidden: set[str] = set()
    seen: set[tuple[str | int, ...]] = set()
    while True:
        try:
            with without(hidden):
                return Settings(**document)
        except ValidationError as error:
            # A value that may also be "auto" gets two errors: the other one says what is wrong.
            problems = [one for one in error.errors(include_url=False) if one["loc"][-1:] != (AUTO,)]
            wrong = [Fault.of(problem, _keys()) for problem in problems]
            # A key that was taken out may be missed by its section: that is no fault of its own.
            new = [fault for fault in wrong if not seen or fault.section not in {*seen, ()}]
            told = [f"{source_of(fault, path, text)}: {fault.told}" for fault in new or wrong]
            variables = {fault.variable for fault in wrong if fault.variable and not fault.decides}
            rest = [fault for fault in wrong if fault.variable not in variables]
            if faults is None or not all(fault.is_dropped(document) for fault in rest):
                raise ConfigError(*told) from None
            hidden |= variables
            seen |= {fault.section for fault in wrong}
            faults.extend(told if new else ())


def _keys() -> dict[str, list[str]]:
    """The names of the keys of each section."""
    return {
        section: list((RootConfig if section == "roots" else field.annotation).model_fields)  # type: ignore[union-attr]
        for section, field in Settings.model_fields.items()
    }


def _absolute(settings: Settings, path: Path, text: str) -> Settings:
    """Resolve relative paths against the file's folder; under /etc they are an error."""
    file = path.absolute()

    def wrong(key: str, told: str) -> ConfigError:
        place = tuple(int(part) if part.isdecimal() else part for part in key.split("."))
        return ConfigError(f"{source_of(Fault.at(place), path, text)}: {key}: {told}")

    def resolve(key: str, value: Path) -> Path:
        try:
            value = value.expanduser()
        except RuntimeError:
            raise wrong(key, f"{str(value)!r} names a user whom this machine does not have") from None
        if value.is_absolute():
            return value
        if file.is_relative_to("/etc"):
            raise wrong(key, f"{str(value)!r} must be an absolute path in a file under /etc")
        return Path(os.path.normpath(file.parent / value))

    def absolute_url(url: str) -> str:
        for scheme in ("sqlite:///", "sqlite+pysqlite:///"):
            if url.startswith(scheme):
                if not url.removeprefix(scheme):
                    raise wrong("catalog.url", "names no file: write sqlite:///featd.db")
                return scheme + str(resolve("catalog.url", Path(url.removeprefix(scheme))))
        if not url.startswith(("postgresql+psycopg://", "postgresql://")):
            told = f"{url.partition(':')[0]!r} is not a supported database: write sqlite:///FILE or"
            raise wrong("catalog.url", f"{told} postgresql+psycopg://user@host/db")
        return url

    def section(name: str, values: BaseModel) -> BaseModel:
        paths = {key: resolve(f"{name}.{key}", value) for key, value in values if isinstance(value, Path)}
        return values.model_copy(update=paths)

    changes: dict[str, Any] = {
        name: section(name, values) for name, values in settings if isinstance(values, BaseModel)
    }
    changes["roots"] = tuple(section(f"roots.{at}", root) for at, root in enumerate(settings.roots))
    # These two are text, because they may also be a built-in net and a server.
    url = absolute_url(settings.catalog.url)
    changes["catalog"] = settings.catalog.model_copy(update={"url": url})
    if not settings.model.built_in:
        net = str(resolve("model.net", Path(settings.model.net)))
        changes["model"] = changes["model"].model_copy(update={"net": net})
    return settings.model_copy(update=changes)


def _nested(roots: list[Path]) -> Iterator[tuple[int, str]]:
    """Roots that are in another one, with what is wrong: an image under two roots would be two images."""
    for one in roots:
        for at, other in enumerate(roots):
            if one is not other and other.is_relative_to(one):
                yield at, f"must not be nested, but {one} contains {other}"
