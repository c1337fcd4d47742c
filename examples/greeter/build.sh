#!/usr/bin/env bash
# Rebuilds greeter.wasm from guest/.
exec "$(dirname "$0")/../../scripts/build-guest" "$(dirname "$0")"
