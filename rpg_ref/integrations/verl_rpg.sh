#!/usr/bin/env bash
# One machine of a run of verl_rpg.yaml: the same line on each, with its number; machine 0 starts the run once all are there.
#
#     verl_rpg.sh HEAD MACHINES NUMBER [verl's overrides]
#     srun --ntasks-per-node 1 bash -c 'verl_rpg.sh $HEAD $SLURM_NNODES $SLURM_NODEID data.train_files=... data.val_files=...'
set -euo pipefail
head=$1 machines=$2 number=$3
shift 3

if [ "$number" != 0 ]; then
    until ray start --address "$head:${PORT:-6379}" --block; do sleep 2; done
    exit
fi

ray start --head --node-ip-address "$head" --port "${PORT:-6379}" --include-dashboard false
trap 'ray stop' EXIT
python - "$machines" <<'WAIT'
import sys, time
import ray

ray.init("auto", log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[1]):
    time.sleep(1)
WAIT
python -m verl.trainer.main_ppo --config-path pkg://rpg_ref.integrations --config-name verl_rpg \
    trainer.nnodes="$machines" "$@"
