#!/usr/bin/env bash
# A run on GPUs by SLURM: one task per node, which has all its GPUs.
#   sbatch --nodes 4 launch/slurm.sh OUT NAME [flags of `balcap train`]
# OUT is gs://... or a folder that all nodes share. Preempted and requeued, it goes on where it was saved.
#SBATCH --job-name=balcap
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
#SBATCH --output=balcap-%j.log
set -euo pipefail
: "${1:?give OUT}" "${2:?give the name of the run}"
here=${BALCAP_LAUNCH:-${SLURM_SUBMIT_DIR:-.}/launch}
srun --kill-on-bad-exit=1 bash "$here/start.sh" "$@"
# Saved before its last step, at the end of its time: again.
if ! python3 - "$1/$2/summary.json" <<'PYTHON'; then
import sys

from balcap_jax.storage.paths import as_path

sys.exit(not as_path(sys.argv[1]).exists())
PYTHON
  scontrol requeue "$SLURM_JOB_ID"
fi
