"""The application: `python -m pipelines COMMAND` trains, sweeps, evaluates and reports, as thin Ray shells around `aig`."""
