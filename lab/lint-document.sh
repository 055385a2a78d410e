#!/usr/bin/env bash
# Two linters find nothing in openapi.json, the slightest hint included.
set -euo pipefail
cd "$(dirname "$0")/.."

export PATH=${PBX_LAB_DIR:-/var/cache/pbx-portal-lab}/linters/node_modules/.bin:$PATH
# Nothing is sent to its maker, and no newer release is looked for.
export REDOCLY_TELEMETRY=off REDOCLY_SUPPRESS_UPDATE_NOTICE=true

# Warnings are no failure to it, but in this format it prints nothing else.
problems=$(redocly lint --format=github-actions openapi.json) || [[ $problems ]] || exit 1
[[ -z $problems ]] || { echo "$problems"; exit 1; }
spectral lint --fail-severity=hint --ruleset lab/spectral.yaml openapi.json
