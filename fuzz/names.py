"""The targets by name; apart from their code, so that the command line imports no torch."""

TARGETS = (
    "pt2",
    "pt2_older",
    "pth",
    "transformers",
    "onnx",
    "operations",
    "npz",
    "builtin",
    "archive",
    "pictures",
    "bind",
    "recipe",
    "form",
    "dataset_safetensors",
    "masks",
    "headers",
)
