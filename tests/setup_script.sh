#!/usr/bin/env bash
# Tests of ../setup.sh: with a PATH that holds only fakes and a few basic tools, it runs with every package manager.
# Installs nothing.
# shellcheck disable=SC2016 # the fakes expand their own variables
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A machine without protoc and etcd, for user id $1. Further arguments name its package managers and sudo.
machine() {
    rm -rf "${work:?}"/*
    mkdir "$work/bin" "$work/store"
    for tool in sh env mktemp rm cat tr tail sed printf cp chmod; do
        ln -s "$(type -P "$tool")" "$work/bin/$tool"
    done
    fake bin id "echo $1"
    fake bin uname '[ "$1" = -m ] && echo x86_64 || echo Linux'
    shift
    for tool in "$@"; do
        case $tool in
        sudo) fake bin sudo '[ "$1" != -n ] || exit 0; echo "sudo $1" >>"$LOG"; exec "$@"' ;;
        # A package manager records its arguments, and its packages install the programs that the store has for them.
        *) fake bin "$tool" 'echo "'"$tool"' $*" >>"$LOG"
case " $* " in *" update "*|*" -Sy "*) : >"$STORE/refreshed"; exit ;; esac
for word in "$@"; do case $word in
    protobuf|protobuf-compiler|protoc|etcd|etcd-server|etcd-client|etcd-ctl)
        [ -d "$STORE/$word" ] || { echo "no package $word"; exit 100; }
        [ ! -e "$STORE/$word/late" ] || [ -e "$STORE/refreshed" ] || { echo "no lists"; exit 100; }
        cp "$STORE/$word"/* "$BIN" ;;
esac; done' ;;
        esac
    done
}

# fake <folder> <program> <script>
fake() {
    mkdir -p "$work/$1"
    printf '#!/bin/sh\n%s\n' "$3" >"$work/$1/$2"
    chmod +x "$work/$1/$2"
}

# sells <package> <program>...
sells() {
    local package=$1
    shift
    for program in "$@"; do fake "store/$package" "$program" 'exit 0'; done
}

run() {
    status=0
    : >"$work/log"
    env -i PATH="$work/bin" HOME="$work" LOG="$work/log" STORE="$work/store" BIN="$work/bin" \
        SETUP_POLICY_FILE="$work/policy" sh ./setup.sh >"$work/out" 2>&1 </dev/null || status=$?
}

fail() {
    echo "FAILED: $test: $*"
    echo "--- exit status $status, output:"
    cat "$work/out"
    echo "--- calls of the package manager:"
    cat "$work/log"
    exit 1
}
succeeds() { [ "$status" = 0 ] || fail "does not succeed"; }
gives_up() { [ "$status" = 1 ] || fail "does not give up"; }
quiet() { [ ! -s "$work/out" ] || fail "is not quiet"; }
says() { grep -qF -- "$1" "$work/out" || fail "does not say: $1"; }
asked() { grep -qxF -- "$1" "$work/log" || fail "did not ask: $1"; }
asked_nothing() { [ ! -s "$work/log" ] || fail "asked for something"; }
has() { [ -x "$work/bin/$1" ] || fail "has no $1"; }
is() { test=$1; }

is "nothing missing: quiet, and nothing is asked"
machine 1000 apt-get
sells all protoc etcd etcdctl
cp "$work/store/all"/* "$work/bin"
run; succeeds; quiet; asked_nothing

is "apt as root: three packages, lists refreshed once, no service started"
machine 0 apt-get
sells protobuf-compiler protoc
sells etcd-server etcd
sells etcd-client etcdctl
touch "$work/store/protobuf-compiler/late" "$work/store/etcd-server/late"
run; succeeds
apt='apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=120'
asked "$apt protobuf-compiler libprotobuf-dev"
asked "$apt etcd-server"
asked "$apt etcd-client"
[ "$(grep -c 'apt-get update' "$work/log")" = 1 ] || fail "refreshed more than once"
[ ! -e "$work/policy" ] || fail "left its policy behind"
run; succeeds; quiet; asked_nothing

is "apt: services are forbidden while etcd is installed"
machine 0 apt-get
sells protobuf-compiler protoc
sells etcd-server etcd
sells etcd-client etcdctl
mv "$work/bin/apt-get" "$work/bin/real-apt-get"
fake bin apt-get 'case "$*" in *etcd-server*) "$POLICY" && echo "started a service" >>"$LOG" ;; esac; exec real-apt-get "$@"'
sed -i "s|\$POLICY|$work/policy|" "$work/bin/apt-get"
run; succeeds
! grep -q "started a service" "$work/log" || fail "a service was started"

is "apt with sudo"
machine 1000 apt-get sudo
sells protobuf-compiler protoc
sells etcd-server etcd
sells etcd-client etcdctl
run; succeeds; asked "sudo env"; has etcdctl

is "dnf: one package has both etcd and etcdctl"
machine 0 dnf
sells protobuf-compiler protoc
sells etcd etcd etcdctl
run; succeeds
asked "dnf install -y protobuf-compiler protobuf-devel"
asked "dnf install -y etcd"
[ "$(wc -l <"$work/log")" = 2 ] || fail "asked for more than was missing"

is "apk"
machine 0 apk
sells protoc protoc
sells etcd etcd
sells etcd-ctl etcdctl
run; succeeds; asked "apk add protoc protobuf-dev"; asked "apk add etcd"; asked "apk add etcd-ctl"

is "pacman, whose repositories may have no etcd"
machine 0 pacman
sells protobuf protoc
run; gives_up; has protoc
says "pacman could not install etcd"; says "no package etcd"; says "please install by hand: etcd etcdctl"
says "-linux-amd64.tar.gz"
[ "$(grep -c "could not install" "$work/out")" = 1 ] || fail "tries twice"
! grep -q "protocolbuffers" "$work/out" || fail "tells how to install what is there"

is "brew, without root"
machine 501 brew
sells protobuf protoc
sells etcd etcd etcdctl
run; succeeds; asked "brew install protobuf"; asked "brew install etcd"

is "no root and no sudo: the command for somebody who has it"
machine 1000 apt-get
run; gives_up; asked_nothing
says "As root: $apt protobuf-compiler libprotobuf-dev etcd-server etcd-client"
says "or without root"
machine 1000 dnf
run; gives_up; says "As root: dnf install -y protobuf-compiler protobuf-devel etcd"

is "an unknown package manager: where to get what"
machine 0
run; gives_up
says "no package manager found"; says "github.com/etcd-io/etcd/releases"; says "protobuf/releases"

is "protoc without its standard files counts as missing"
machine 0 apt-get
sells all etcd etcdctl
cp "$work/store/all"/* "$work/bin"
fake bin protoc 'exit 1'
sells protobuf-compiler protoc
run; succeeds; asked "$apt protobuf-compiler libprotobuf-dev"

is "programs named in the environment count"
machine 0
fake elsewhere tool 'exit 0'
status=0
env -i PATH="$work/bin" PROTOC="$work/elsewhere/tool" ETCD_BIN="$work/elsewhere/tool" \
    ETCDCTL_BIN="$work/elsewhere/tool" sh ./setup.sh >"$work/out" 2>&1 || status=$?
succeeds; quiet

is "a wrong name in the environment is told"
status=0
env -i PATH="$work/bin" ETCD_BIN="$work/nothing" sh ./setup.sh >"$work/out" 2>&1 || status=$?
gives_up; says "$work/nothing, which is not a program"

echo "setup.sh: all tests passed"
