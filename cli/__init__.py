"""Commands that run the service on one machine."""
