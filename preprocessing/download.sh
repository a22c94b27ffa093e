#!/usr/bin/env bash
# What the download.sh of the datasets share: bash preprocessing/download.sh DATASET DIR
# Works from any folder, to which a relative DIR refers. PYTHON names another Python than python3.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
dataset=$1
shift
python=${PYTHON:-python3}

# Without PYTHONSAFEPATH, modules of the caller's folder would come before this repository's
export PYTHONSAFEPATH=1 PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

fail() {
    echo "error: $1" >&2
    exit 2
}
command -v "$python" > /dev/null || fail "$python is not found; install Python 3.10 or later, or name it by the variable PYTHON"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
    || fail "$python does not run as Python 3.10 or later; name one by the variable PYTHON"
missing=$("$python" -c 'import importlib.util as u
print(*[name for name in ("configargparse", "numpy", "tqdm", "yaml") if u.find_spec(name) is None], sep=", ")')
[ -z "$missing" ] || fail "$python lacks the packages $missing; install them by $python -m pip install -r $root/requirements.txt"

exec "$python" -m "preprocessing.$dataset.download" "$@"
