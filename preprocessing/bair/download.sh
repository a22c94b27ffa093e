#!/usr/bin/env bash
# bash preprocessing/bair/download.sh DIR
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../download.sh" bair "$@"
