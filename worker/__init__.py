"""The worker: Celery tasks that supervise one sandboxed process each."""
