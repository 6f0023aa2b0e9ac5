"""The operator: makes the cluster agree with every `MultimodalDeployment`.

An event only names a resource (`main`, `workqueue`). What is done follows from what is seen (`mirror`, `observe`), is
decided without I/O (`plan`, `policies`, `render`, `status`) and carried out by one shell (`reconcile`, `apply`,
`kube`).
"""
