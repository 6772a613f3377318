"""`parotid-seg infer --cluster`: the cases of a run on the hosts of a Ray cluster.

The command's own process finds scans, keeps the journal and writes the summary, as on one machine. A second process is
the cluster's client (`driver`); if the cluster is lost, only this process ends. On the hosts Ray Data keeps actors
(`host`), each with the model and the worker processes of `runtime.pipeline.scheduler`.
"""
