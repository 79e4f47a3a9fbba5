#!/usr/bin/env bash
# Holds every distribution of the shelf to what an installed plugin must be: in a fresh virtual environment each is
# installed, its tests and the conformance kit on each of its methods run, it is uninstalled, and attribkit and whatever
# else is installed go on without.
#   plugins/check_shelf.sh [--together] [NAME…]     NAME: cam, captum, …; default all under plugins/
# --together installs all of them into one environment: what continuous integration does, in a few minutes.
# EXAMPLES=20 for each check, JOBS=2 processes, PYTHON=.venv/bin/python: the environment whose packages are borrowed
# (torch is large), so that only what it lacks is installed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
python=${PYTHON:-$root/.venv/bin/python}
examples=${EXAMPLES:-20}
jobs=${JOBS:-2}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

together=
names=()
for argument in "$@"; do
    if [ "$argument" = --together ]; then together=yes; else names+=("$argument"); fi
done
if [ ${#names[@]} -eq 0 ]; then
    for folder in plugins/attribkit-*/; do
        folder=${folder%/}
        names+=("${folder#plugins/attribkit-}")
    done
fi
for name in "${names[@]}"; do
    test -f "plugins/attribkit-$name/pyproject.toml" || { echo "there is no plugins/attribkit-$name" >&2; exit 1; }
done

say() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }

# What is borrowed: every package that $python sees, but for the shelf's own distributions, should they be installed there.
borrowed=$scratch/borrowed
"$python" -c '
import os, sys
os.mkdir(sys.argv[1])
for folder in [path for path in sys.path if path.endswith("site-packages")]:
    for name in os.listdir(folder):
        if not name.replace("-", "_").startswith(("attribkit_", "__editable__")) and not name.endswith(".pth"):
            place = os.path.join(sys.argv[1], name)
            if not os.path.lexists(place):
                os.symlink(os.path.join(folder, name), place)
' "$borrowed"

# A fresh environment in $env; run MODULE ARGUMENT… runs in it, outside the repository.
fresh() {
    env=$scratch/$1
    "$python" -m venv --without-pip "$env"
    local site
    site=$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    printf '%s\n%s\n' "$root" "$borrowed" > "$site/borrowed.pth"
}
run() { (cd "$scratch" && "$env/bin/python" -m "$@"); }

# The distributions are copied, since building leaves folders in the source, and installed with what their tests need.
install_all() {
    local sources=() name
    for name in "$@"; do
        cp -r "$root/plugins/attribkit-$name" "$scratch/source-$name"
        sources+=("$scratch/source-$name[test]")
    done
    run pip --quiet install --no-build-isolation --prefix "$env" "${sources[@]}"
}

tests_of() {
    local name=$1
    shift
    (cd "$root/plugins/attribkit-$name" && "$env/bin/python" -m pytest -q -p no:cacheprovider "$@" tests)
}

# The tests of several distributions, $jobs at once. Their tests of conformance are left out: the checks follow.
tests_of_all() {
    local name failed=
    for name in "$@"; do
        while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n || true; done
        (tests_of "$name" --ignore=tests/test_conformance.py > "$scratch/tests-$name.txt" 2>&1 \
            && touch "$scratch/passed-$name") &
    done
    wait || true
    for name in "$@"; do
        say "tests of attribkit-$name"
        if [ -e "$scratch/passed-$name" ]; then tail -n 1 "$scratch/tests-$name.txt"; continue; fi
        cat "$scratch/tests-$name.txt" >&2
        failed="$failed attribkit-$name"
    done
    [ -z "$failed" ] || { echo "tests failed:$failed" >&2; exit 1; }
}

has_methods() {
    run attribkit methods | grep -qE "\battribkit-$1\b"
}

# The methods of the named distributions that bring any; quantus, say, brings a command.
checks_of() {
    local with_methods=() name
    for name in "$@"; do
        if has_methods "$name"; then with_methods+=("attribkit-$name"); fi
    done
    [ ${#with_methods[@]} -eq 0 ] && return
    (cd "$scratch" && "$env/bin/python" "$root/plugins/check_methods.py" \
        --examples "$examples" --jobs "$jobs" "${with_methods[@]}")
}

active() {
    run attribkit plugins > "$scratch/plugins.txt"
    grep -qE "\battribkit-$1\b" "$scratch/plugins.txt" \
        || { echo "attribkit-$1 is no plugin after its installation" >&2; cat "$scratch/plugins.txt" >&2; exit 1; }
    ! grep -E "\battribkit-$1\b" "$scratch/plugins.txt" | grep -qE "failed|incompatible" \
        || { echo "attribkit-$1 has a fault" >&2; cat "$scratch/plugins.txt" >&2; exit 1; }
}

# What is left works: the remaining plugins are listed, and a gradient is a gradient.
still_works() {
    run attribkit plugins > /dev/null
    (cd "$scratch" && "$env/bin/python" -W error -c '
import torch, attribkit
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
found = attribkit.attribute(model, torch.ones(1, 3, 2, 2), "gradient", 1)
assert torch.allclose(found.values.flatten(), model[1].weight[1])')
}

if [ "$together" ]; then
    say "${names[*]} in one environment"
    fresh together
    before=$(run attribkit methods)
    install_all "${names[@]}"
    run attribkit methods
    for name in "${names[@]}"; do
        active "$name"
    done
    tests_of_all "${names[@]}"
    say "checks of every method"
    checks_of "${names[@]}"
    for name in "${names[@]}"; do
        run pip --quiet uninstall --yes "attribkit-$name"
        still_works
        say "uninstalled attribkit-$name, the rest works"
    done
    test "$before" = "$(run attribkit methods)" || { echo "the shelf left something behind" >&2; exit 1; }
    exit
fi

for name in "${names[@]}"; do
    say "attribkit-$name"
    fresh "$name"
    before=$(run attribkit methods)
    install_all "$name"
    active "$name"
    tests_of "$name"
    checks_of "$name"
    run pip --quiet uninstall --yes "attribkit-$name"
    still_works
    test "$before" = "$(run attribkit methods)" || { echo "attribkit-$name left something behind" >&2; exit 1; }
    echo "attribkit-$name: installed, tested, checked, gone"
done
