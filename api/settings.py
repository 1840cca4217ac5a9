"""Settings of the front end alone, from variables ``PRUNING_API_…``; what it shares is in `jobs.settings`."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

Names = Annotated[tuple[str, ...], NoDecode]


class ApiSettings(BaseSettings):
    """Where the api listens, and whom it answers. Durations in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="PRUNING_API_", frozen=True, extra="ignore")

    host: str = Field(default="127.0.0.1", description="Address that `python -m api` binds.")
    port: int = Field(default=8000, ge=0, lt=65536)
    keys: Literal["none", "required"] = Field(
        default="none",
        description="'none': everybody on this machine may do everything, and no other machine is answered. "
        "'required': each call needs an API key, and any address may be bound.",
    )
    allowed_hosts: Names = Field(
        default=(),
        description="Host names answered besides loopback ones, comma-separated; '*': any, which is "
        "the default with keys.",
    )
    allowed_origins: Names = Field(
        default=(),
        description="Web origins (scheme://host:port) that may change things besides the api's own, comma-separated.",
    )
    rate_per_second: float = Field(default=50.0, gt=0, description="Calls of one key, in the long run.")
    rate_burst: int = Field(default=200, ge=1, description="Calls of one key at once, after a pause.")
    failures_per_minute: float = Field(default=30.0, gt=0, description="Calls without a valid key, of one address.")
    failures_burst: int = Field(default=30, ge=1)
    max_connections: int = Field(default=2000, ge=1, description="At one time; more are answered 503 at once.")
    max_json_bytes: int = Field(default=2**20, gt=0, description="Of a JSON body.")
    max_wait_seconds: int = Field(default=60, ge=0, description="Of `Prefer: wait=N`.")
    max_streams: int = Field(default=1000, ge=1, description="Clients that follow or wait for jobs at one time.")
    max_streams_per_tenant: int = Field(default=250, ge=1)
    stream_seconds: float = Field(default=3600, gt=0, description="Then a stream of events ends; the client resumes.")
    stream_beat_seconds: float = Field(default=15, gt=0, description="Between signs of life on a silent stream.")
    max_transfers: int = Field(default=32, ge=1, description="Uploads and downloads at one time; more wait.")
    max_transfers_per_tenant: int = Field(default=24, ge=1, description="Uploads of one tenant; its others wait.")
    idle_seconds: float = Field(default=60.0, gt=0, description="An upload that sends nothing so long is given up.")
    shutdown_seconds: int = Field(default=10, ge=1, description="For transfers to end when the api is stopped.")

    @property
    def keys_required(self) -> bool:
        """Whether a call needs an API key."""
        return self.keys == "required"

    @field_validator("allowed_hosts", "allowed_origins", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = value.split(",")
        return tuple(part.strip().lower() for part in value if part.strip())


def is_loopback(host: str) -> bool:
    """Return whether this name or address (no port) stands for this very machine.

    >>> is_loopback("localhost"), is_loopback("127.0.0.2"), is_loopback("::1"), is_loopback("localhost.example.com")
    (True, True, True, False)
    """
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ip_address(name)
    except ValueError:
        return False
    # ::ffff:127.0.0.1 is what a dual-stack socket says.
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
