#!/usr/bin/env bash
# Runs the jobs of an environment that a plan says are new or changed, promotes their canaries once they are
# healthy, and waits until each deployment is done. Nothing is run that has no room.
# usage: ci/deploy.sh ENV [--set KEY=VALUE]...
# DEPLOY_MINUTES is the time that one job may take; after it the deployment is failed, and Nomad reverts it.
# To be replaced by `vllmjobs deploy`.
set -euo pipefail

fields() { # PLAN.json: of each job to run, its name, id, namespace, region and index
  python3 - "$1" <<'PYTHON'
import json, sys
(environment,) = json.load(open(sys.argv[1]))["environments"]
for job in environment["jobs"]:
    if job["action"] in ("new", "changed"):
        print(*(job[key] for key in ("job", "id", "namespace", "region")), job["plan"]["modify_index"])
PYTHON
}

# A promotion starts the progress deadline anew, so there is to be only one.
status_of_it='{{.Status}}{{range .TaskGroups}}{{if and .DesiredCanaries (not .Promoted)}} canaries{{end}}{{end}}'

follow() { # EVALUATION JOB
  local deployment said='' status='' minutes=${DEPLOY_MINUTES:-60}
  local deadline=$((SECONDS + 60 * minutes))
  until said=$(nomad eval status -t '{{.Status}} {{.DeploymentID}}' "$1") && [[ $said == complete* ]]; do
    ((SECONDS < deadline)) || { echo "$2: evaluation $1 is $said after $minutes minutes" >&2 && return 1; }
    sleep 1
  done
  deployment=${said#complete } # none where no allocation changes, such as for a smaller count
  while [[ -n $deployment ]]; do
    status=$(nomad deployment status -t "$status_of_it" "$deployment") || status=unknown
    case $status in
      successful*) break ;;
      failed* | cancelled*) nomad deployment status "$deployment" >&2 && nomad job status "$2" >&2 && return 1 ;;
      *canaries) said=$(nomad deployment promote -detach "$deployment" 2>&1) || true ;; # until all are healthy
      *) said= ;;
    esac
    if ((SECONDS >= deadline)); then
      echo "$2: not done after $minutes minutes, so the deployment is failed${said:+: $said}" >&2
      nomad deployment fail -detach "$deployment" >&2
      return 1
    fi
    sleep 2
  done
  echo "$2: deployed"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0
vllmjobs plan "$@" || status=$? # for people; 3 is no room
[[ $status == [02] ]] || exit "$status"
vllmjobs plan "$@" --no-detailed --format json >"$work/plan.json"
fields "$work/plan.json" >"$work/jobs"
while read -r name job namespace region index; do
  export NOMAD_NAMESPACE=$namespace NOMAD_REGION=$region
  vllmjobs render "$@" --job "$name" >"$work/$name.nomad.hcl"
  # Refused when the job is no longer the one that was planned against.
  nomad job run -detach -check-index "$index" "$work/$name.nomad.hcl" | tee "$work/said"
  follow "$(sed -n 's/^Evaluation ID: //p' "$work/said")" "$job"
done <"$work/jobs"
