#!/usr/bin/env bash
# bash preprocessing/kth/download.sh DIR
exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../download.sh" kth "$@"
