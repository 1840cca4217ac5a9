# The front end: no torch, small, non-root. Build from the repository root:
#   docker build -f docker/api.Dockerfile -t pruning-service-api .
ARG PYTHON=3.12
FROM python:${PYTHON}-slim
# With traces: --build-arg EXTRAS=,otel
ARG EXTRAS=

RUN useradd --create-home --uid 10001 pruning
WORKDIR /srv
COPY pyproject.toml README.md LICENSE ./
COPY pruning_core ./pruning_core
COPY jobs ./jobs
COPY pages ./pages
COPY api ./api
COPY cli ./cli
# -e keeps the packages where they were copied; the `api` extra has no torch, and the next line proves it.
RUN pip install --no-cache-dir -e ".[api${EXTRAS}]" \
 && python -c "import api.app, sys; assert 'torch' not in sys.modules" \
 && ! pip show torch >/dev/null 2>&1

USER 10001
ENV PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["python", "-m", "api"]
