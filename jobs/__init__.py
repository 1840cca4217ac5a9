"""What api and worker share: records in the bucket, the clock in Redis, the queue, the use cases.

No torch, no FastAPI.
"""
