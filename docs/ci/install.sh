#!/usr/bin/env bash
# Installs vllmjobs and Nomad's command line into .tools/bin, and puts that on PATH for the steps that follow.
# usage: ci/install.sh, with NOMAD_VERSION set, and NOMAD_SHA256 of the zip where it is pinned too
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
tools=$PWD/.tools
releases=${NOMAD_RELEASES:-https://releases.hashicorp.com/nomad}/${NOMAD_VERSION:?}

case $(uname -m) in
  x86_64) zip=nomad_${NOMAD_VERSION}_linux_amd64.zip ;;
  aarch64) zip=nomad_${NOMAD_VERSION}_linux_arm64.zip ;;
  *) echo "ci/install.sh: no Nomad for $(uname -m)" >&2 && exit 1 ;;
esac
if [[ ! -f $here/requirements.txt ]]; then
  echo "ci/install.sh: there is no ci/requirements.txt; make it, with the hash of every package:" \
    "pip-compile --generate-hashes --output-file ci/requirements.txt ci/requirements.in" >&2
  exit 1
fi
rm -rf "$tools" # what a commit put there would come first on PATH
mkdir "$tools" && cd "$tools"
curl --fail --silent --show-error --location --retry 3 --remote-name "$releases/$zip"
if [[ -n ${NOMAD_SHA256-} ]]; then
  echo "$NOMAD_SHA256  $zip" >nomad.sha256
else
  curl --fail --silent --show-error --location --retry 3 "$releases/nomad_${NOMAD_VERSION}_SHA256SUMS" |
    grep -F "  $zip" >nomad.sha256
fi
sha256sum --check --strict --quiet nomad.sha256
python3 -I -m zipfile -e "$zip" bin
chmod 755 bin/nomad
rm "$zip"

python3 -I -m venv "$tools"
"$tools/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$here/requirements.txt"

for service in NOMAD CONSUL; do # GitHub has no variables that are files
  pem=${service}_CACERT_PEM
  [[ -n ${!pem-} ]] || continue
  echo "${!pem}" >"${service,,}-ca.pem"
  echo "${service}_CACERT=$tools/${service,,}-ca.pem" >>"$GITHUB_ENV"
done
[[ -z ${GITHUB_PATH-} ]] || echo "$tools/bin" >>"$GITHUB_PATH"
