# tdro for machines without a GPU. From the root of the repository:
#   docker build --file docker/cpu.Dockerfile --tag tdro:cpu .
FROM python:3.11-slim-bookworm AS build
ARG EXTRAS=lora,mine,hub
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY constraints.txt ./
RUN python -m venv /opt/tdro \
 && /opt/tdro/bin/pip install --constraint constraints.txt --index-url https://download.pytorch.org/whl/cpu torch
COPY pyproject.toml README.md LICENSE ./
COPY recipes recipes
COPY src src
RUN /opt/tdro/bin/pip install --constraint constraints.txt ".[${EXTRAS}]"

FROM python:3.11-slim-bookworm
RUN useradd --uid 1000 --create-home tdro \
 && install --directory --mode 1777 /cache /work
COPY --from=build /opt/tdro /opt/tdro
ENV PATH=/opt/tdro/bin:$PATH \
    XDG_CACHE_HOME=/cache \
    TDRO_CACHE=/cache/tdro \
    HF_HOME=/cache/huggingface
VOLUME /cache
WORKDIR /work
USER 1000:1000
ENTRYPOINT ["tdro"]
CMD ["--help"]
