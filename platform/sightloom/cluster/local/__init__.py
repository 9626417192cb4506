"""A whole stack on one machine: Ray, MLflow, the endpoint and Prometheus, started, watched and ended as one."""
