# syntax=docker/dockerfile:1
# Two images, without Java (METEOR, SPICE and the PTB tokenizer need it) and without weights or data:
#   docker build --target cpu  -t emollama:cpu .
#   docker build --target cuda -t emollama:cuda .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/workspace" emollama:cpu demo
#   docker run --rm --gpus all --ipc host --user "$(id -u):$(id -g)" -v "$PWD:/workspace" -v /path/to/data:/data \
#       -e EMOLLAMA_DATA=/data emollama:cuda train --cfg-path train_configs/Emotion-LLaMA_finetune.yaml
# --ipc host: workers of a DataLoader pass batches through shared memory, of which a container has 64 MB by default.

ARG PYTHON_VERSION=3.12

FROM python:${PYTHON_VERSION}-slim AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM python:${PYTHON_VERSION}-slim AS base
# HOME is a folder that every user can write, because --user gives ids without an entry in /etc/passwd.
ENV PYTHONUNBUFFERED=1 HOME=/home/emollama
RUN useradd --uid 1000 --home-dir /home/emollama --create-home emollama && chmod 1777 /home/emollama && install -d -m 1777 /workspace

# Dependencies are a layer of their own: a change of the code does not install PyTorch again.
FROM base AS cpu
RUN --mount=type=bind,source=requirements.txt,target=/build/requirements.txt \
    --mount=type=bind,source=constraints.txt,target=/build/constraints.txt \
    pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
        -c /build/constraints.txt -r /build/requirements.txt
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    --mount=type=bind,source=constraints.txt,target=/build/constraints.txt \
    pip install --no-cache-dir -c /build/constraints.txt "$(echo /dist/*.whl)[serve]"
USER 1000
WORKDIR /workspace
ENTRYPOINT ["emollama"]

# PyTorch's wheels bring the CUDA libraries; the host needs a driver and the NVIDIA Container Toolkit.
FROM base AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Triton, whose kernels compute dropout and Liger's operations, compiles a part of itself in C when a run starts.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN --mount=type=bind,source=requirements.txt,target=/build/requirements.txt \
    --mount=type=bind,source=constraints.txt,target=/build/constraints.txt \
    pip install --no-cache-dir -c /build/constraints.txt -r /build/requirements.txt
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    --mount=type=bind,source=constraints.txt,target=/build/constraints.txt \
    pip install --no-cache-dir -c /build/constraints.txt "$(echo /dist/*.whl)[serve,fast]"
USER 1000
WORKDIR /workspace
ENTRYPOINT ["emollama"]
