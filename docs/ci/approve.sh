#!/usr/bin/env bash
# GitLab: an error unless whoever started this job may approve, and is not the one who did so before.
# usage: ci/approve.sh [FIRST_APPROVER], with PROD_APPROVERS set to user names, spaces between them
set -euo pipefail
refuse() {
  echo "$GITLAB_USER_LOGIN $*" >&2
  exit 1
}
[[ " ${PROD_APPROVERS:?} " == *" $GITLAB_USER_LOGIN "* ]] || refuse "is not in PROD_APPROVERS"
[[ $GITLAB_USER_LOGIN != "${1-}" ]] || refuse "has approved already; it takes a second person"
