#!/usr/bin/env bash
# The lowest versions that pyproject.toml declares, on the lowest Python: installs them, runs the demo and the core tests.
# Not part of .ci/run: torch's old wheels are several gigabytes. PYTHON names another interpreter than python3.10.
set -euo pipefail
cd "$(dirname "$0")/.."

shared=$(cd .. && pwd)/shared
if [ -z "${TEXT2SAM_TEST_DATA:-}" ] && [ -d "$shared/parity" ]; then
  export TEXT2SAM_TEST_DATA=$shared
fi
python=${PYTHON:-$(ls ~/.pyenv/versions/3.10.*/bin/python 2>/dev/null | tail -1)}
python=${python:-python3.10}

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/uv"
"$folder/uv/bin/pip" install --quiet uv
uv=$folder/uv/bin/uv
lowest=$folder/lowest/bin

"$uv" venv --quiet --python "$python" "$folder/lowest"
"$uv" pip compile --quiet --resolution lowest-direct --python "$lowest/python" pyproject.toml \
  --extra sticker --extra plot --extra supervision --extra lab --output-file "$folder/lowest.txt"
grep -E "^[a-z]" "$folder/lowest.txt"
"$uv" pip install --quiet --python "$lowest/python" -r "$folder/lowest.txt" pytest hypothesis
"$uv" pip install --quiet --python "$lowest/python" --no-deps .
export PATH=$lowest:$PATH

text2sam demo --out "$folder/demo"
# Old packages warn of what their successors have mended.
pytest -o filterwarnings=default tests/test_image.py tests/test_types.py tests/test_files.py tests/test_rle.py \
  tests/test_targets.py tests/test_presence.py tests/test_devices.py tests/test_pipeline.py tests/test_own_parts.py \
  tests/test_demo.py tests/test_plot.py tests/clip tests/sam tests/recipes tests/zoo tests/cli tests/tasks
