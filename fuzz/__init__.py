"""Coverage-guided fuzzing of every parser of bytes that a user sends: ``python -m fuzz <target> --seconds N``."""
