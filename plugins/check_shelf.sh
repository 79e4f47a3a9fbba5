#!/usr/bin/env bash
# Holds every distribution of the shelf to what an installed plugin must be: in a fresh virtual environment each is
# installed, its tests and `attribkit check` for each of its methods run, it is uninstalled, and attribkit goes on without.
# The environment borrows the packages of the repository's own (torch is large), so nothing but the plugin is installed.
#   plugins/check_shelf.sh [NAME…]     NAME: cam, lrp, paths; default all.   EXAMPLES=20, PYTHON=.venv/bin/python
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
python=${PYTHON:-$root/.venv/bin/python}
examples=${EXAMPLES:-20}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

names=("$@")
if [ ${#names[@]} -eq 0 ]; then
    for folder in plugins/attribkit-*/; do
        name=${folder%/}
        names+=("${name#plugins/attribkit-}")
    done
fi

borrowed=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
for name in "${names[@]}"; do
    folder=$root/plugins/attribkit-$name
    test -f "$folder/pyproject.toml" || { echo "there is no plugins/attribkit-$name" >&2; exit 1; }
    printf '\n== attribkit-%s\n' "$name"
    env=$scratch/$name
    "$python" -m venv --without-pip "$env"
    site=$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    printf '%s\n%s\n' "$root" "$borrowed" > "$site/borrowed.pth"
    run() { (cd "$scratch" && "$env/bin/python" -m "$@"); }

    before=$(run attribkit methods)
    cp -r "$folder" "$scratch/source-$name"  # building leaves folders in the source
    run pip --quiet --disable-pip-version-check --no-input install --no-deps --no-build-isolation --no-index \
        --prefix "$env" "$scratch/source-$name"
    methods=$("$env/bin/python" -c '
import sys
import attribkit
print("\n".join(name for name, method in attribkit.methods().items() if method.distribution == sys.argv[1]))
' "attribkit-$name")
    test -n "$methods" || { echo "attribkit-$name brought no method" >&2; run attribkit plugins >&2; exit 1; }
    (cd "$folder" && "$env/bin/python" -m pytest -q -p no:cacheprovider tests)
    for method in $methods; do
        run attribkit check "$method" --examples "$examples" > "$scratch/$method.txt" \
            || { cat "$scratch/$method.txt" >&2; exit 1; }
        grep . "$scratch/$method.txt" | tail -n 1
    done
    run pip --quiet --disable-pip-version-check --no-input uninstall --yes "attribkit-$name"
    after=$(run attribkit methods)
    test "$before" = "$after" || { echo "attribkit-$name left something behind" >&2; exit 1; }
    echo "attribkit-$name: installed, tested, checked, gone"
done
