#!/usr/bin/env bash
# Common part of the datasets' download.sh: bash preprocessing/download.sh DATASET DIR
# Runs from any folder; a relative DIR refers to that folder. PYTHON selects the interpreter.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
dataset=$1
shift
python=${PYTHON:-python3}

# PYTHONSAFEPATH keeps modules in the current folder from shadowing ours
export PYTHONSAFEPATH=1 PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

fail() {
    echo "error: $1" >&2
    exit 2
}
command -v "$python" > /dev/null \
    || fail "$python is not found; install Python 3.10 or later, or set PYTHON to its path"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
    || fail "$python does not run as Python 3.10 or later; set PYTHON to the path of one that does"
missing=$("$python" -c 'import importlib.util as u
names = "configargparse", "filelock", "numpy", "PIL", "requests", "tqdm"
print(*[name for name in names if u.find_spec(name) is None], sep=", ")')
[ -z "$missing" ] \
    || fail "$python lacks the packages $missing; $python -m pip install -r $root/requirements.txt"

exec "$python" -m "preprocessing.$dataset.download" "$@"
