#!/bin/sh
# JIT'd code under perf and gdb: `make demo`.
set -eu
python=${PYTHON:-python3}
program=$(dirname "$0")/tiny.py
data=$(mktemp)
shown=$(mktemp)
trap 'rm -f "$data" "$shown"' EXIT

echo
echo "== perf record $program"
perf record -q -N -e cpu-clock -o "$data" "$python" "$program"
echo
echo "== perf report: what the time was spent in"
perf report -i "$data" --stdio --no-children --fields overhead,dso,sym --percent-limit 1 \
    2>/dev/null | sed '/^#/d; /^$/d; s/ *$//' | head -12 | tee -a "$shown"
echo
echo "== gdb: stopped in the source that was compiled"
gdb -q -nx -batch \
    -ex 'set breakpoint pending on' -ex 'set debuginfod enabled off' -ex 'set print frame-info auto' \
    -ex 'set confirm off' -ex 'break collatz.tiny:8 if n > 1000' -ex run \
    -ex 'backtrace 2' -ex 'info args' -ex 'info locals' -ex kill \
    --args "$python" "$program" 2>&1 | sed -n '/^Breakpoint 1, /,/^\[Inferior/p' | tee -a "$shown"
grep -q 'JIT.*steps' "$shown" && grep -q '^Breakpoint 1, steps' "$shown"
