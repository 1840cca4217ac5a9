"""Webhooks after the Standard Webhooks specification: signed, retried, delivered at least once, never inwards.

`registry` keeps what tenants asked for, `outbox` what is still to be delivered (both in the bucket), `sender` delivers.
"""
