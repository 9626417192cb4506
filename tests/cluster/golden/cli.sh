#!/bin/sh
# train-nano; RAY_API_SERVER_ADDRESS names the cluster, RAY_AUTH_TOKEN_PATH its token's file
exec ray job submit --no-wait \
  --submission-id train-nano-ee7d1142-1 \
  --entrypoint-num-cpus 1 \
  --entrypoint-num-gpus 0 \
  --entrypoint-memory 8000000000 \
  --entrypoint-resources '{"front": 1.0}' \
  --runtime-env-json '{"env_vars": {"OMP_NUM_THREADS": "1"}, "py_modules": ["s3://bucket/code/_ray_pkg_2.zip"], "working_dir": "s3://bucket/code/_ray_pkg_1.zip"}' \
  --metadata-json '{"mlflow.experiment": "nano", "mlflow.tag.team": "vision", "sightloom.digest": "ee7d1142bdf17b361332be62ba588abcdd83652b6153201c36ac8305d51f2500", "sightloom.kind": "train", "sightloom.name": "train-nano", "sightloom.spec": "{\"argv\": [\"--out\", \"s3://bucket/train\"], \"config\": \"pipelines/curricula/nano.yaml\", \"deadline_s\": 86400, \"env\": {\"OMP_NUM_THREADS\": \"1\"}, \"kind\": \"train\", \"mlflow\": {\"experiment\": \"nano\", \"tags\": {\"team\": \"vision\"}}, \"name\": \"train-nano\", \"resources\": {\"driver\": {\"memory_gb\": 8.0, \"resources\": {\"front\": 1.0}}, \"workers\": [{\"accelerator\": \"H100\", \"cpus\": 32.0, \"gpus\": 8, \"group\": \"gpu\", \"max\": 2, \"memory_gb\": 256.0, \"min\": 2}, {\"cpus\": 8.0, \"group\": \"decode\", \"max\": 4, \"memory_gb\": 16.0, \"min\": 0, \"resources\": {\"decode\": 1.0}}]}, \"retries\": {\"max\": 2}, \"schedule\": {\"cron\": \"0 3 * * *\", \"time_zone\": \"Europe/Berlin\"}, \"secrets\": {\"AWS_SECRET_ACCESS_KEY\": {\"key\": \"secret\", \"secret\": \"s3\"}, \"HF_TOKEN\": {\"file\": \"hf_token\"}}, \"set\": {\"data.manifest\": \"s3://bucket/shards/v3/manifest.json\", \"run.seed\": 7}}"}' \
  -- python -m sightloom.cluster.start AWS_SECRET_ACCESS_KEY HF_TOKEN=/run/secrets/hf_token -- python pipelines/train.py pipelines/curricula/nano.yaml --out s3://bucket/train --set run.seed=7 --set data.manifest=s3://bucket/shards/v3/manifest.json
