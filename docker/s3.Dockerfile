# The small persistent S3 server that `make up` uses too. Any other S3 does as well: set PRUNING_S3_* instead.
FROM python:3.12-slim
RUN useradd --create-home --uid 10001 nanio && install -d -o nanio /data \
 && pip install --no-cache-dir nanio==0.1.7
USER 10001
VOLUME /data
EXPOSE 9000
HEALTHCHECK --interval=5s --timeout=3s --start-period=5s --retries=10 \
  CMD ["python", "-c", "import socket; socket.create_connection(('127.0.0.1', 9000), 2).close()"]
CMD ["nanio", "serve", "--data-dir", "/data", "--host", "0.0.0.0", "--port", "9000", "--no-access-log"]
