#!/usr/bin/env bash
# Runs a throwaway copy of an environment beside the real one, waits until it is healthy, and asks each of its
# engines for a completion. Whoever calls it stops JOB afterwards, whatever came of it.
# usage: ci/integration.sh ENV JOB
set -euo pipefail
environment=$1 job=$2

# Without a balancer it gets none of the environment's requests.
vllmjobs deploy "$environment" --set "job=$job" --set balancer.kind=none --timeout 40m

key() { # a header for curl to read: everybody on the machine can see its arguments
  printf 'Authorization: Bearer %s\n' "${VLLM_API_KEY-}"
}

ask() { # ADDRESS
  local models question
  models=$(curl -fsS --max-time 30 -H @<(key) "http://$1/v1/models")
  question=$(python3 -I -c 'import json, sys
model = json.load(sys.stdin)["data"][0]["id"]
json.dump({"model": model, "prompt": "Nomad is", "max_tokens": 8}, sys.stdout)' <<<"$models")
  curl -fsS --max-time 120 -H @<(key) -H 'Content-Type: application/json' --data-binary @- \
    "http://$1/v1/completions" <<<"$question"
  echo
}

for allocation in $(nomad job allocs -t '{{range .}}{{if eq .ClientStatus "running"}}{{.ID}} {{end}}{{end}}' "$job"); do
  address=$(nomad alloc status -t \
    '{{range .AllocatedResources.Shared.Ports}}{{if eq .Label "http"}}{{.HostIP}}:{{.Value}}{{end}}{{end}}' "$allocation")
  status=0
  curl --silent --output /dev/null --connect-timeout 5 "http://$address/health" || status=$?
  case $status in
    7 | 28) echo "$address: cannot be reached from here, so no completion is asked for" ;;
    *) ask "$address" ;;
  esac
done
