#!/usr/bin/env bash
# Ends with an error when a file of the repository holds what looks like a secret: to detect-secrets, or to vllmjobs.
# A line that is none says so: `# pragma: allowlist secret`.
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
git ls-files -z |
  xargs -0 -r detect-secrets-hook --no-verify --exclude-files '^envs/schema\.json$' --plugin "$here/secrets_plugin.py" --
