#!/usr/bin/env bash
# Download KTH Actions to DIR/raw/<class>: bash preprocessing/kth/download.sh DIR
# Run it again to continue an interrupted download. KTH_URL names a mirror.
set -euo pipefail
raw=${1:?name a folder: bash preprocessing/kth/download.sh DIR}/raw
url=${KTH_URL:-http://www.csc.kth.se/cvap/actions}

mkdir -p "$raw"
for class in boxing handclapping handwaving jogging running walking; do
    archive=$raw/$class.zip
    if [ ! -d "$raw/$class" ]; then
        if [ ! -e "$archive" ]; then
            curl -fL -C - --retry 5 -o "$archive.part" "$url/$class.zip"
            mv "$archive.part" "$archive"
        fi
        rm -rf "$raw/.$class"
        unzip -q "$archive" -d "$raw/.$class" ||
            { echo "error: $archive is damaged; delete it and run again" >&2; exit 2; }
        mv "$raw/.$class" "$raw/$class"
        rm "$archive"
    fi
    echo "$raw/$class: $(find "$raw/$class" -name '*.avi' | wc -l) videos"
done
