#!/usr/bin/env bash
# Ends with an error when a file of the repository holds what looks like a secret.
# A line that is none says so: `# pragma: allowlist secret`.
set -euo pipefail
git ls-files -z | xargs -0 detect-secrets-hook --no-verify --exclude-files '^envs/schema\.json$'
