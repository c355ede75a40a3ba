# shellcheck shell=bash
# What the scripts of this directory share. Sourced by them, never run.
set -euo pipefail
umask 022
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# shellcheck disable=SC2034  # used by the scripts that source this file
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
server_user=stap-server
server_home=/var/lib/$server_user
stock_runtime=/usr/share/systemtap/runtime
patched_runtime=$server_home/runtime

die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# The kernel releases whose headers are installed, oldest first; of one version, the plainest flavour last. Flavours follow
# the version, with or without a number between: 6.1.0-50-cloud-amd64, 6.12.118+deb13-cloud-amd64.
header_releases() {
    local tree release
    for tree in /lib/modules/*/build; do
        [[ -e $tree/Makefile ]] || continue
        release=$(basename "$(dirname "$tree")")
        printf '%s %d %s\n' "$(sed -E 's/(-[a-z][^-]*)+$//' <<<"$release")" "${#release}" "$release"
    done | sort -k1,1V -k2,2nr | cut -d' ' -f3
}

# Do the headers of release $1 want the runtime to call task_work_cancel_func()?
headers_want_patch() {
    local tree=/lib/modules/$1
    grep -qsw task_work_cancel_func "$tree"/{build,source}/include/linux/task_work.h
}

# Does the runtime in directory $1 call it already, as a patched copy and SystemTap 5.1 and later do?
runtime_is_patched() {
    grep -qsw task_work_cancel_func "$1/stp_task_work.c"
}

# What a patched copy is made from: it is out of date when this changes. The number is that of the patch.
runtime_origin() {
    dpkg-query -W -f='${Package} ${Version}, patch 1\n' systemtap-common
}

# True when an installed release wants a patched copy of the runtime.
patch_is_needed() {
    local release
    [[ -e $stock_runtime/stp_task_work.c ]] || return 1
    runtime_is_patched "$stock_runtime" && return 1
    while read -r release; do
        headers_want_patch "$release" && return 0
    done < <(header_releases)
    return 1
}

# True when the copy in directory $1 is complete and made from today's package.
patch_is_current() {
    [[ -e $1/.origin && $(<"$1/.origin") == "$(runtime_origin)" ]]
}

# The runtime to compile with for release $1.
runtime_for() {
    if headers_want_patch "$1" && ! runtime_is_patched "$stock_runtime"; then
        echo "$patched_runtime"
    else
        echo "$stock_runtime"
    fi
}

# clean_environment HOME USER DIRECTORY: fill `environment` with all that a command in that checkout is to see. Tests and
# demonstrations are not advertised on the network.
clean_environment() {
    local name
    environment=("HOME=$1" "USER=$2" "LOGNAME=$2" SHELL=/bin/sh
        "PATH=$3/.venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" STAPSRV_MDNS=no STAPSRV_WARMUP=no)
    for name in CI TERM LANG; do
        if [[ -v $name ]]; then
            environment+=("$name=${!name}")
        fi
    done
}
