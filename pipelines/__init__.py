"""The application, `python -m pipelines COMMAND`: thin Ray shells around `aig`."""
