# tdro for NVIDIA GPUs. From the root of the repository:
#   docker build --file docker/cuda.Dockerfile --tag tdro:cuda .
# The torch of the package index brings its own CUDA libraries; the machine needs the driver and the container toolkit.
FROM python:3.11-slim-bookworm AS build
ARG EXTRAS=lora,mine,hub
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY constraints.txt ./
RUN python -m venv /opt/tdro \
 && /opt/tdro/bin/pip install --constraint constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY recipes recipes
COPY src src
RUN /opt/tdro/bin/pip install --constraint constraints.txt ".[${EXTRAS}]"

FROM python:3.11-slim-bookworm
# A C compiler for model.compile. Debian's current one: a pinned version is gone from the archive with the next update.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --create-home tdro \
 && install --directory --mode 1777 /cache /work
COPY --from=build /opt/tdro /opt/tdro
ENV PATH=/opt/tdro/bin:$PATH \
    XDG_CACHE_HOME=/cache \
    TDRO_CACHE=/cache/tdro \
    HF_HOME=/cache/huggingface \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
VOLUME /cache
WORKDIR /work
USER 1000:1000
ENTRYPOINT ["tdro"]
CMD ["--help"]
