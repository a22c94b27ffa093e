#!/usr/bin/env bash
# Download BAIR robot pushing to DIR/softmotion30_44k: bash preprocessing/bair/download.sh DIR
# This takes 30 GiB, and 60 GiB while it is unpacked. Run it again to continue an interrupted
# download. BAIR_URL names a mirror, BAIR_SHA256 the digest of another archive.
set -euo pipefail
dir=${1:?name a folder: bash preprocessing/bair/download.sh DIR}
url=${BAIR_URL:-http://rail.eecs.berkeley.edu/datasets/bair_robot_pushing_dataset_v0.tar}
sha256=${BAIR_SHA256:-c6f8d164ab2be07174ef597e3e070d7466f3142caddc467b6af119b9458cd9cd}
archive=$dir/bair_robot_pushing_dataset_v0.tar

mkdir -p "$dir"
if [ ! -d "$dir/softmotion30_44k" ]; then
    if [ ! -e "$archive" ]; then
        curl -fL -C - --retry 5 -o "$archive.part" "$url"
        mv "$archive.part" "$archive"
    fi
    echo "$sha256  $archive" | sha256sum -c ||
        { echo "error: $archive is damaged; delete it and run again" >&2; exit 2; }
    rm -rf "$dir/.unpacked"
    mkdir "$dir/.unpacked"
    tar -xf "$archive" -C "$dir/.unpacked" softmotion30_44k
    mv "$dir/.unpacked/softmotion30_44k" "$dir"
    rm -r "$archive" "$dir/.unpacked"
fi
echo "$dir/softmotion30_44k: $(find "$dir/softmotion30_44k" -name '*.tfrecords' | wc -l) files"
