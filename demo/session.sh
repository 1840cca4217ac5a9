#!/usr/bin/env bash
# What the README shows: upload, prune, poll, download. Needs curl and python3 (to read JSON), URL from the environment.
set -euo pipefail
URL=${URL:-http://127.0.0.1:8000}

# [README begins]
field() { python3 -c "import json, sys; value = json.load(sys.stdin)['$1']; print('' if value is None else value)"; }

MODEL=$(curl -sS --fail-with-body -T digits.pt2 "$URL/models/" | field id)
CALIBRATION=$(curl -sS --fail-with-body -T calibration.npz "$URL/datasets/" | field id)
VALIDATION=$(curl -sS --fail-with-body -T validation.npz "$URL/datasets/" | field id)

JOB=$(curl -sS --fail-with-body -X POST "$URL/jobs" -H 'Content-Type: application/json' -d '{
  "model": "'"$MODEL"'", "calibration": "'"$CALIBRATION"'", "validation": "'"$VALIDATION"'",
  "recipe": {"select": {"algorithm": "chita", "sparsity": 0.9}}
}' | field id)

while :; do
  STATUS=$(curl -sS --fail-with-body "$URL/jobs/$JOB")
  STATE=$(field state <<<"$STATUS")
  printf '\r%s %-10s %-12s %5.1f %%' "$JOB" "$STATE" "$(field stage <<<"$STATUS")" \
    "$(python3 -c "print(100 * $(field progress <<<"$STATUS"))")"
  case $STATE in succeeded) break ;; failed | cancelled) echo; echo "$STATUS"; exit 1 ;; esac
  sleep 0.5
done; echo

curl -sS --fail-with-body -L -o digits-pruned.pt2 "$URL/jobs/$JOB/model"
curl -sS --fail-with-body -L -o report.json "$URL/jobs/$JOB/report"
# [README ends]
