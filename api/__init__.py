"""The FastAPI front end: ids and streams, never a tensor. It opens no uploaded file and imports no torch."""
