#!/usr/bin/env bash
# Stops a throwaway job and forgets it, and what `vllmjobs history` has of it; that there is none is no error.
# usage: ci/purge.sh JOB
set -euo pipefail
said=$(nomad job stop -purge -detach -no-shutdown-delay "$1" 2>&1) || [[ $said == "No job(s) with prefix"* ]] || {
  echo "$said" >&2
  exit 1
}
nomad var purge "vllmjobs/releases/$1" >/dev/null || true # a token that may not says so, and goes on
echo "$1 is gone"
