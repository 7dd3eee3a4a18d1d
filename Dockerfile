# featd in a container. Two images: the CPU's, and that of NVIDIA GPUs, which has not run on one yet.
#
#   docker build -t featd .
#   docker build -t featd:cuda --target cuda .
#
# It runs as user 10001, without capabilities, on a root file system that may only be read. A start ends the leases of
# the start before it by the name of the host: give the container one, and time to finish when it stops:
#
#   docker run --read-only --tmpfs /tmp --cap-drop all --security-opt no-new-privileges --hostname archive \
#     --stop-timeout 120 -v ./featd.toml:/etc/featd/featd.toml:ro -v ./photos:/photos:ro \
#     -v ./state:/var/lib/featd featd
ARG BASE=debian:12-slim

FROM ${BASE} AS build
# Git tells the version, from the tags.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends git python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/featd
WORKDIR /src
COPY . .

FROM build AS build-cpu
RUN /opt/featd/bin/pip install --no-cache-dir '.[cpu,heif,parquet,search,web]'

FROM build AS build-cuda
RUN /opt/featd/bin/pip install --no-cache-dir '.[cuda,heif,parquet,search,web]'

FROM ${BASE} AS base
# pg_dump and psql: what `featd backup` and `featd restore` call on PostgreSQL.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends postgresql-client python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /var/lib/featd --create-home --shell /usr/sbin/nologin featd
# HDF5 loads no filters from folders that others may write.
ENV PATH=/opt/featd/bin:$PATH HDF5_PLUGIN_PRELOAD=:: PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /var/lib/featd
VOLUME /var/lib/featd
HEALTHCHECK --interval=60s --timeout=20s --start-period=90s \
    CMD ["featd", "--config", "/etc/featd/featd.toml", "status", "--exit-code"]
ENTRYPOINT ["featd"]
CMD ["--config", "/etc/featd/featd.toml", "run"]

FROM base AS cuda
# What the container toolkit of NVIDIA lets in: the driver's CUDA and NVML.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-cuda /opt/featd /opt/featd

FROM base AS cpu
COPY --from=build-cpu /opt/featd /opt/featd
