#!/usr/bin/env bash
# One machine of a run of verl_rpg.yaml: the same line on each, with its number; machine 0 starts the run once all are there.
#
#     verl_rpg.sh HEAD MACHINES NUMBER [verl's overrides]
#     srun --ntasks-per-node 1 bash -c 'verl_rpg.sh $HEAD $SLURM_NNODES $SLURM_NODEID data.train_files=... data.val_files=...'
#
# At its end `ray stop` ends whatever there is of Ray on the machine: one run a machine.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: verl_rpg.sh HEAD MACHINES NUMBER [verl's overrides]" >&2; exit 2; }
head=$1 machines=$2 number=$3
shift 3
export RAY_ADDRESS="$head:${PORT:-6379}"
trap 'ray stop' EXIT

if [ "$number" != 0 ]; then
    tries=0
    until ray start --address "$RAY_ADDRESS"; do
        tries=$((tries + 1))
        [ "$tries" -lt "${TRIES:-150}" ] || { echo "verl_rpg.sh: no Ray at $RAY_ADDRESS; start machine 0 there" >&2; exit 1; }
        sleep 2
    done
    while ray health-check --address "$RAY_ADDRESS" --skip-version-check; do sleep "${LOOK:-10}"; done
    exit
fi

ray start --head --node-ip-address "$head" --port "${PORT:-6379}" --include-dashboard false
python - "$machines" <<'WAIT'
import sys, time
import ray

ray.init(log_to_driver=False)
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[1]):
    time.sleep(1)
WAIT
python -m verl.trainer.main_ppo --config-path pkg://rpg_ref.integrations --config-name verl_rpg \
    trainer.nnodes="$machines" "$@"
