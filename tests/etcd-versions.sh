#!/usr/bin/env bash
# Runs the tests on newer releases of etcd than the one installed, as far as apt can download them.
#
#   tests/etcd-versions.sh [command]        default: the fault suite
#
# Takes Debian's etcd-server and etcd-client of trixie and forky from package lists of its own, unpacks them into a
# folder and runs the command once for each, with ETCD_BIN and ETCDCTL_BIN naming them. Installs nothing, and changes
# nothing of the system's apt. ETCD_VERSIONS_DIR keeps the unpacked programs between runs (default: a folder of its own
# below the temporary one); ETCD_SUITES names other suites.
set -euo pipefail
cd "$(dirname "$0")/.."

suites=${ETCD_SUITES:-trixie forky}
keep=${ETCD_VERSIONS_DIR:-${TMPDIR:-/tmp}/etcd-versions-$(id -u)}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}

say() { printf 'etcd-versions: %s\n' "$*"; }

if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null || [ ! -r "$keyring" ]; then
    say "nothing done: only Debian's apt-get, dpkg and keyring give other releases of etcd"
    exit 0
fi

# apt with lists, cache and sources of its own. Runs as whoever we are: it changes nothing else.
own_apt() {
    local dir=$1
    shift
    apt-get -q -o "Dir::Etc::SourceList=$dir/sources.list" -o "Dir::Etc::SourceParts=-" \
        -o "Dir::State=$dir/state" -o "Dir::State::Status=/dev/null" -o "Dir::Cache=$dir/cache" \
        -o "APT::Sandbox::User=$(id -un)" -o "Debug::NoLocking=true" -o "Acquire::Languages=none" "$@"
}

# Unpacks a suite's etcd and etcdctl into $keep/$suite, unless they are there.
get() {
    local suite=$1 dir=$keep/$1
    [ ! -x "$dir/usr/bin/etcd" ] || [ ! -x "$dir/usr/bin/etcdctl" ] || return 0
    rm -rf "$dir"
    mkdir -p "$dir/state/lists/partial" "$dir/cache/archives/partial"
    echo "deb [signed-by=$keyring] $mirror $suite main" >"$dir/sources.list"
    say "reading the package list of $suite"
    own_apt "$dir" update >"$dir/log" 2>&1 || return 1
    say "unpacking etcd-server and etcd-client of $suite into $dir"
    (cd "$dir" && own_apt "$dir" download etcd-server etcd-client >>"$dir/log" 2>&1) || return 1
    local package
    for package in "$dir"/*.deb; do
        dpkg -x "$package" "$dir"
    done
    rm -rf "$dir"/*.deb "$dir/state" "$dir/cache"
}

# The first line of "etcd --version" ends in the number.
version() { "$1" --version 2>/dev/null | sed -n '1s/.* //p'; }

if [ $# -eq 0 ]; then
    set -- cargo test --test faults -- --test-threads=6
fi
say "the installed etcd is $(version "${ETCD_BIN:-etcd}" || echo none)"
failed=
for suite in $suites; do
    if ! get "$suite"; then
        say "$suite: not to be had here. apt said:"
        tail -n 5 "$keep/$suite/log" | sed 's/^/    /'
        continue
    fi
    etcd=$keep/$suite/usr/bin/etcd
    if ! "$etcd" --version >/dev/null 2>&1; then
        say "$suite: its etcd does not run here: $("$etcd" --version 2>&1 | head -n 1)"
        continue
    fi
    say "$suite: etcd $(version "$etcd"): $*"
    if ! ETCD_BIN=$etcd ETCDCTL_BIN=$keep/$suite/usr/bin/etcdctl "$@"; then
        failed="$failed $(version "$etcd")"
    fi
done
if [ -n "$failed" ]; then
    say "failed on etcd$failed"
    exit 1
fi
