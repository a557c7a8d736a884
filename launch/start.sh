#!/usr/bin/env bash
# Starts the run OUT/NAME, or goes on with it where it has begun: what a scheduler calls again and again.
#   launch/start.sh OUT NAME [flags of `balcap train` for a new run]
# BALCAP_COMMAND=sft trains on given answers. SIGTERM saves, and the exit code is 0 then; the scheduler's
# next start goes on. All hosts of a pod may call it at once: nobody writes before all have met.
set -euo pipefail
out=$1 name=$2
shift 2
command=${BALCAP_COMMAND:-train}

begun() {
  python3 - "$out/$name/config.json" <<'PYTHON'
import sys

from balcap_jax.storage.paths import as_path

sys.exit(0 if as_path(sys.argv[1]).exists() else 3)
PYTHON
}

code=0
begun || code=$?
case $code in
  0) exec balcap "$command" --resume "$out/$name" ;;
  3) exec balcap "$command" --out "$out" --name "$name" "$@" ;;
  *) exit "$code" ;; # the bucket cannot be asked; the last line says why
esac
