#!/bin/sh
# Serves a model to other machines; the key comes in LWM_API_KEY, and not in the list of processes.
set -eu
keys=$(mktemp)
printf '%s\n' "${LWM_API_KEY:?give the key for clients}" > "$keys"
unset LWM_API_KEY
exec lwm serve "$@" --host 0.0.0.0 --api-key-file "$keys"
