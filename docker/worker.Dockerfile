# The worker: Celery supervisor and the sandboxed pruning process, non-root. Build from the repository root.
#   CPU:   docker build -f docker/worker.Dockerfile -t pruning-service-worker .
#   CUDA:  docker build -f docker/worker.Dockerfile --build-arg BASE=nvidia/cuda:13.0.0-base-ubuntu24.04 -t … .
# The base decides what `pip install torch` brings: on a CUDA base the CUDA build; for a CPU image without the CUDA
# packages give a build of torch from your own index or wheel folder: --build-arg TORCH="torch==2.13.0+cpu …".
ARG BASE=python:3.12-slim
FROM ${BASE}

ARG TORCH=torch==2.13.0
# With traces: --build-arg EXTRAS=,otel
ARG EXTRAS=
SHELL ["/bin/bash", "-eo", "pipefail", "-c"]
# A CUDA base brings no Python; a Python base has it already. The base is chosen at build time, so no versions here.
# hadolint ignore=DL3008
RUN if ! command -v python3 >/dev/null; then \
      apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*; \
    fi \
 && python3 -m venv /opt/venv \
 && useradd --create-home --uid 10001 pruning
ENV PATH=/opt/venv/bin:$PATH
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ${TORCH}

WORKDIR /srv
COPY pyproject.toml README.md LICENSE ./
COPY pruning_core ./pruning_core
COPY jobs ./jobs
COPY worker ./worker
RUN pip install --no-cache-dir -e ".[worker${EXTRAS}]" \
 && install -d -o pruning /work

USER 10001
ENV PYTHONUNBUFFERED=1 PRUNING_WORK_DIR=/work QUEUE=jobs
VOLUME /work
HEALTHCHECK --interval=30s --timeout=20s --start-period=30s --retries=3 \
  CMD ["bash", "-c", "celery -A worker.app inspect ping -d \"$QUEUE@$HOSTNAME\" -t 15"]
CMD ["bash", "-c", "exec celery --quiet -A worker.app worker --concurrency 1 --loglevel INFO -Q \"$QUEUE\" -n \"$QUEUE@%h\" --without-gossip --without-mingle"]
