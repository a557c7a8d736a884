#!/usr/bin/env bash
# A run on a Cloud TPU slice, by queued resources: asks for the slice, installs, trains on all workers, and
# asks again when a spot slice is taken away, until the run has made its last step.
#   BUCKET=gs://my-bucket ZONE=us-west4-b launch/tpu_vm.sh my-run --config qwen2_5_vl_7b_v5e_64 \
#     --data.path gs://my-bucket/data/captions.jsonl
# Called at the top of a checkout, which is what gets installed. Everything after the name goes to `balcap train`. See docs/cloud.md.
set -euo pipefail
: "${BUCKET:?give the bucket of runs, BUCKET=gs://...}"
: "${ZONE:?give the zone, ZONE=us-west4-b}"
: "${1:?give the name of the run}"
name=$1
shift
TYPE=${TYPE:-v5litepod-64}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
SPOT=${SPOT:-1}
TRIES=${TRIES:-20}
flags=$(printf ' %q' "$@")

wheels=$(mktemp -d)
pip wheel --quiet --no-deps --wheel-dir "$wheels" .
wheel=$(basename "$wheels"/balcap_jax-*.whl)

run_on_all() {
  gcloud compute tpus tpu-vm ssh "$name" --zone "$ZONE" --worker=all --command "$1"
}

finished() { gcloud storage ls "$BUCKET/runs/$name/summary.json" >/dev/null 2>&1; }

give_back() {
  gcloud compute tpus queued-resources delete "$name" --zone "$ZONE" --force --quiet 2>/dev/null || true
}
trap 'give_back; rm -rf "$wheels"' EXIT

for ((try = 1; try <= TRIES; try++)); do
  spot=()
  if [ "$SPOT" = 1 ]; then spot=(--spot); fi
  gcloud compute tpus queued-resources create "$name" --node-id "$name" --zone "$ZONE" \
    --accelerator-type "$TYPE" --runtime-version "$RUNTIME" "${spot[@]}"
  until [ "$(gcloud compute tpus queued-resources describe "$name" --zone "$ZONE" \
    --format 'value(state.state)')" = ACTIVE ]; do
    sleep 30
  done
  # A slice that is taken away ends these commands with an error, and the next ones go on.
  gcloud compute tpus tpu-vm scp "$wheels/$wheel" launch/start.sh "$name": --zone "$ZONE" \
    --worker=all && run_on_all "
    set -e
    sudo apt-get install -qq -y python3.11-venv
    python3.11 -m venv ~/balcap
    . ~/balcap/bin/activate
    pip install -q './${wheel}[tpu,gcs,judge]'
    bash start.sh $BUCKET/runs $name $flags
  " || echo "try $try has ended early; the slice is asked for again" >&2
  if finished; then
    echo "$BUCKET/runs/$name is finished"
    exit 0
  fi
  give_back
done
echo "no summary.json after $TRIES tries; the same command goes on" >&2
exit 1
