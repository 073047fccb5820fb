#!/bin/sh
# Installs the missing ones of the programs that building and testing need: protoc, etcd and etcdctl.
#
# Prints nothing when nothing is missing. Uses the system's package manager (apt, dnf, apk, pacman or brew), with sudo
# where necessary, and prints instructions where it cannot install. Starts no service: tests and examples start
# etcd processes of their own.
#
# PROTOC, ETCD_BIN and ETCDCTL_BIN may name programs that are not on the PATH.
set -eu

ETCD_VERSION=3.5.30 # the release in the instructions; any since 3.4 works

say() { printf 'setup.sh: %s\n' "$*" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }

# protoc needs its standard .proto files, which some systems package separately.
have_protoc() {
    have "${PROTOC:-protoc}" || return 1
    printf 'syntax = "proto3";\nimport "google/protobuf/descriptor.proto";\nimport "google/protobuf/struct.proto";\n' \
        >"$scratch/probe.proto"
    "${PROTOC:-protoc}" ${PROTOC_INCLUDE:+"-I$PROTOC_INCLUDE"} "-I$scratch" -o "$scratch/probe" \
        "$scratch/probe.proto" >/dev/null 2>&1
}
have_etcd() { have "${ETCD_BIN:-etcd}"; }
have_etcdctl() { have "${ETCDCTL_BIN:-etcdctl}"; }

find_missing() {
    missing=
    have_protoc || missing="$missing protoc"
    have_etcd || missing="$missing etcd"
    have_etcdctl || missing="$missing etcdctl"
}

# How to become root: "" (we are), a command, or "no".
find_root() {
    if [ "$(id -u)" = 0 ]; then
        root=
    elif have sudo && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
        root=sudo
    elif have doas && { doas -n true 2>/dev/null || [ -t 0 ]; }; then
        root=doas
    else
        root=no
    fi
}

find_manager() {
    manager=
    for candidate in apt-get dnf apk pacman; do
        if have "$candidate"; then
            manager=$candidate
            break
        fi
    done
    # brew must not run as root.
    if have brew && { [ -z "$manager" ] || [ "$root" = no ]; }; then
        manager=brew
        root=
    fi
}

# The packages of one missing program.
packages_of() {
    case $manager:$1 in
    apt-get:protoc) echo protobuf-compiler libprotobuf-dev ;;
    apt-get:etcd) echo etcd-server ;;
    apt-get:etcdctl) echo etcd-client ;;
    dnf:protoc) echo protobuf-compiler protobuf-devel ;;
    apk:protoc) echo protoc protobuf-dev ;;
    apk:etcdctl) echo etcd-ctl ;;
    *:protoc) echo protobuf ;;
    *:*) echo etcd ;;
    esac
}

install_command() {
    case $manager in
    apt-get) echo apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=120 ;;
    dnf) echo dnf install -y ;;
    apk) echo apk add ;;
    pacman) echo pacman -S --noconfirm --needed ;;
    brew) echo brew install ;;
    esac
}

# Installs packages; the output of the package manager is in $scratch/log.
add_packages() {
    say "installing $* with $manager"
    # shellcheck disable=SC2046,SC2086 # words, not one word
    set -- $root env DEBIAN_FRONTEND=noninteractive $(install_command) "$@"
    "$@" >"$scratch/log" 2>&1 && return
    # The package lists may be missing, or too old.
    refresh && "$@" >"$scratch/log" 2>&1
}

refreshed=
refresh() {
    [ -z "$refreshed" ] || return 1
    refreshed=yes
    case $manager in
    apt-get) $root apt-get update >"$scratch/refresh" 2>&1 ;;
    apk) $root apk update >"$scratch/refresh" 2>&1 ;;
    pacman) $root pacman -Sy --noconfirm >"$scratch/refresh" 2>&1 ;;
    *) return 1 ;;
    esac
}

# Debian's etcd-server starts a service, at once and with every boot, which is not wanted here.
policy=${SETUP_POLICY_FILE:-/usr/sbin/policy-rc.d}
our_policy=
forbid_services() {
    if [ ! -e "$policy" ]; then
        our_policy=yes
        printf '#!/bin/sh\nexit 101\n' >"$scratch/policy"
        chmod 755 "$scratch/policy"
        $root cp "$scratch/policy" "$policy"
    fi
}
allow_services() {
    [ -z "$our_policy" ] || $root rm -f "$policy"
    our_policy=
}
disable_service() {
    if have update-rc.d; then $root update-rc.d etcd disable >/dev/null 2>&1 || true; fi
    if [ -d /run/systemd/system ]; then $root systemctl disable --now etcd >/dev/null 2>&1 || true; fi
}

install_missing() {
    tried=
    for program in $missing; do
        # A package may have installed several programs, or none.
        "have_$program" && continue
        packages=$(packages_of "$program")
        [ "$packages" != "$tried" ] || continue
        tried=$packages
        debian_etcd=
        [ "$packages" != etcd-server ] || debian_etcd=yes
        [ -z "$debian_etcd" ] || forbid_services
        # shellcheck disable=SC2086 # words, not one word
        if ! add_packages $packages; then
            say "$manager could not install $packages. It said:"
            tail -n 5 "$scratch/log" | sed 's/^/    /' >&2
        elif [ -n "$debian_etcd" ]; then
            disable_service
        fi
        [ -z "$debian_etcd" ] || allow_services
    done
}

# The command to run as root, with each package once.
root_command() {
    packages=
    for program in $missing; do
        for package in $(packages_of "$program"); do
            case " $packages " in *" $package "*) ;; *) packages="$packages $package" ;; esac
        done
    done
    echo "$(install_command)$packages"
}

protoc_by_hand() {
    cat >&2 <<END
  protoc: get protoc-<version>-$protoc_os-$protoc_arch.zip from
      https://github.com/protocolbuffers/protobuf/releases
    unpack it, bin/ and include/ side by side, and put bin/ on your PATH (or set PROTOC to bin/protoc).
END
}

etcd_by_hand() {
    cat >&2 <<END
  etcd and etcdctl: get
      https://github.com/etcd-io/etcd/releases/download/v$ETCD_VERSION/etcd-v$ETCD_VERSION-$os-$go_arch.$archive
    unpack it, and put both programs on your PATH (or set ETCD_BIN and ETCDCTL_BIN to them).
END
}

by_hand() {
    os=$(uname -s | tr '[:upper:]' '[:lower:]')
    case $(uname -m) in
    x86_64 | amd64) go_arch=amd64 protoc_arch=x86_64 ;;
    aarch64 | arm64) go_arch=arm64 protoc_arch=aarch_64 ;;
    *) go_arch=$(uname -m) protoc_arch=$(uname -m) ;;
    esac
    archive=tar.gz protoc_os=$os
    [ "$os" != darwin ] || archive=zip protoc_os=osx
    say "please install by hand:$missing"
    case $missing in *protoc*) protoc_by_hand ;; esac
    case $missing in *etcd*) etcd_by_hand ;; esac
}

# A program that the environment names must exist: an installed one would not be used.
for named in "${PROTOC:-}" "${ETCD_BIN:-}" "${ETCDCTL_BIN:-}"; do
    if [ -n "$named" ] && ! have "$named"; then
        say "PROTOC, ETCD_BIN or ETCDCTL_BIN names $named, which is not a program"
        exit 1
    fi
done

scratch=$(mktemp -d)
trap 'allow_services; rm -rf "$scratch"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

find_missing
[ -n "$missing" ] || exit 0
find_root
find_manager

if [ -z "$manager" ]; then
    say "no package manager found (known: apt-get, dnf, apk, pacman, brew)"
elif [ "$root" = no ]; then
    say "not root, and no sudo. As root: $(root_command)"
    say "or without root:"
else
    install_missing
    find_missing
    [ -n "$missing" ] || exit 0
fi
by_hand
exit 1
